"""Which adapters exist: names, versions, which version is active, and one generation counter over all of it.

    meta       one row: generation, format_version
    adapters   name -> active_version (None: staged only), changed_generation, deleted
    versions   (name, version) -> sha256, size_bytes, created_at, state ("kept" or "deleted")

Rows of deleted versions stay as tombstones, which is how a version number is never used twice. One process writes;
any number read. SQLite in its rollback-journal mode: an acknowledged change survives a power cut. All SQL of the
server is in this file. Knows nothing of HTTP, files of weights, or the engine.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from sqlalchemy import Boolean, Column, Connection, Integer, MetaData, String, Table, create_engine, event, func, select
from sqlalchemy.exc import DatabaseError, OperationalError

from server.errors import (
    AdapterNotFoundError,
    ConflictError,
    PreconditionFailedError,
    StorageFullError,
    StorageUnavailableError,
    VersionNotFoundError,
)

FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 5

Precondition: TypeAlias = frozenset[int] | Literal["*"] | None
"""What If-Match asked for: generations of which one must be the adapter's, "*" for any existing adapter, or nothing."""

_metadata = MetaData()
_meta = Table(
    "meta",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("format_version", Integer, nullable=False),
)
_adapters = Table(
    "adapters",
    _metadata,
    Column("name", String(160), primary_key=True),
    Column("active_version", Integer),
    Column("changed_generation", Integer, nullable=False),
    Column("deleted", Boolean, nullable=False),
)
_versions = Table(
    "versions",
    _metadata,
    Column("name", String(160), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size_bytes", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("state", String(16), nullable=False),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One immutable version. created_at is ISO 8601 in UTC, for people; order comes from the numbers."""

    sha256: str
    size_bytes: int
    created_at: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. active is None while everything is staged; generation is that of its last change, its ETag."""

    active: int | None
    versions: Mapping[int, VersionRow]
    generation: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The catalogue at one generation, never changed afterwards."""

    generation: int
    adapters: Mapping[str, Entry]

    def sha256s(self) -> set[str]:
        """The content of every kept version."""
        return {row.sha256 for entry in self.adapters.values() for row in entry.versions.values()}


EMPTY = Snapshot(0, MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Change:
    """What a write did. is_new: a version was made; is_active: bare name answers with it; generation: the ETag now."""

    version: int
    sha256: str
    generation: int
    is_new: bool
    is_active: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """What a delete removed, and the generation that no longer has it."""

    versions: Mapping[int, VersionRow]
    generation: int


class Catalogue:
    """The catalogue in one SQLite file.

    Raises StorageUnavailableError where the file is damaged, newer than this release, locked for 5 s or unreadable,
    StorageFullError where the disk is full. Every method blocks on the disk: call it off the event loop. Any thread.
    """

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        """Open; the one writer makes the tables where they are missing and checks the whole file."""
        self.path = path
        self._is_writer = is_writer
        if not is_writer and not path.exists():
            raise StorageUnavailableError("the catalogue does not exist yet")
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(self._engine, "connect", self._prepare)
        event.listen(self._engine, "begin", self._begin)
        if is_writer:
            self._initialise()
        self._check_format()

    def close(self) -> None:
        """Close the file; the object is of no use afterwards."""
        self._engine.dispose()

    def generation(self) -> int:
        """The counter alone: what a reader polls."""
        with self._transaction() as connection:
            return _read_generation(connection)

    def snapshot(self) -> Snapshot:
        """Everything that is kept, as of one generation."""
        with self._transaction() as connection:
            kept: dict[str, dict[int, VersionRow]] = {}
            for row in connection.execute(select(_versions).where(_versions.c.state == "kept").order_by("version")):
                kept.setdefault(row.name, {})[row.version] = VersionRow(row.sha256, row.size_bytes, row.created_at)
            entries = {
                row.name: Entry(row.active_version, MappingProxyType(kept.get(row.name, {})), row.changed_generation)
                for row in connection.execute(select(_adapters).where(_adapters.c.deleted.is_(False)).order_by("name"))
            }
            return Snapshot(_read_generation(connection), MappingProxyType(entries))

    def names_ever_held(self) -> set[str]:
        """Every name that ever existed, deleted ones too."""
        with self._transaction() as connection:
            return set(connection.scalars(select(_adapters.c.name)))

    def is_referenced(self, sha256: str) -> bool:
        """Whether some kept version, of whatever name, has this content."""
        query = select(_versions.c.name).where(_versions.c.sha256 == sha256, _versions.c.state == "kept").limit(1)
        with self._transaction() as connection:
            return connection.execute(query).first() is not None

    def add_version(
        self, name: str, sha256: str, size_bytes: int, *, activate: bool = True, if_match: Precondition = None
    ) -> Change:
        """Add a version, or find the kept one with the same content. Raises PreconditionFailedError."""
        with self._transaction() as connection:
            entry = _read_entry(connection, name)
            _check_precondition(name, entry, if_match)
            kept = _read_versions(connection, name) if entry else {}
            version = next((number for number, row in kept.items() if row.sha256 == sha256), None)
            is_new = version is None
            if version is None:
                version = 1 + (connection.scalar(select(func.max(_versions.c.version)).filter_by(name=name)) or 0)
                created_at = datetime.now(UTC).isoformat(timespec="seconds")
                row = {"name": name, "version": version, "sha256": sha256, "size_bytes": size_bytes}
                connection.execute(_versions.insert().values(**row, created_at=created_at, state="kept"))
            active = version if activate else (entry.active if entry else None)
            if entry and not is_new and active == entry.active:
                return Change(version, sha256, entry.generation, is_new=False, is_active=active == version)
            generation = _bump(connection)
            _write_entry(connection, name, active, generation)
            return Change(version, sha256, generation, is_new=is_new, is_active=active == version)

    def activate(self, name: str, version: int, *, if_match: Precondition = None) -> Change:
        """Let the bare name answer with this version.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError.
        """
        with self._transaction() as connection:
            entry, kept = _require_entry(connection, name, if_match)
            row = _require_version(name, version, kept)
            generation = entry.generation
            if entry.active != version:
                generation = _bump(connection)
                _write_entry(connection, name, version, generation)
            return Change(version, row.sha256, generation, is_new=False, is_active=True)

    def delete_version(self, name: str, version: int, *, if_match: Precondition = None) -> Removal:
        """Remove one version that is not active.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError; ConflictError for the active one.
        """
        with self._transaction() as connection:
            entry, kept = _require_entry(connection, name, if_match)
            row = _require_version(name, version, kept)
            if entry.active == version:
                raise ConflictError(
                    f"version {version} of {name} is the active one",
                    param="version",
                    hint="activate another version first, or delete the name with all its versions",
                )
            this = (_versions.c.name == name) & (_versions.c.version == version)
            connection.execute(_versions.update().where(this).values(state="deleted"))
            generation = _bump(connection)
            _write_entry(connection, name, entry.active, generation, deleted=len(kept) == 1)
            return Removal({version: row}, generation)

    def delete_name(self, name: str, *, if_match: Precondition = None) -> Removal:
        """Remove a name with all its versions. Raises AdapterNotFoundError, PreconditionFailedError."""
        with self._transaction() as connection:
            _, kept = _require_entry(connection, name, if_match)
            connection.execute(_versions.update().where(_versions.c.name == name).values(state="deleted"))
            generation = _bump(connection)
            _write_entry(connection, name, None, generation, deleted=True)
            return Removal(kept, generation)

    def _initialise(self) -> None:
        with self._transaction() as connection:
            verdict = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            if verdict != "ok":
                raise _damaged(str(verdict))
            _metadata.create_all(connection)
            if connection.execute(select(_meta.c.id)).first() is None:
                connection.execute(_meta.insert().values(id=1, generation=0, format_version=FORMAT_VERSION))

    def _check_format(self) -> None:
        with self._transaction() as connection:
            found = connection.scalar(select(_meta.c.format_version))
        if found != FORMAT_VERSION:
            raise StorageUnavailableError(
                f"the catalogue has format_version {found}; this release reads {FORMAT_VERSION}",
                hint="start the release that wrote it, or give ADAKRON_STATE_DIR another folder",
            )

    def _prepare(self, connection: Any, record: object) -> None:
        connection.isolation_level = None  # else sqlite3 begins transactions by itself, and never IMMEDIATE ones
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        if not self._is_writer:
            # Not a read-only file: the first to open after a crash of the writer must be able to roll back its journal.
            connection.execute("PRAGMA query_only = ON")

    def _begin(self, connection: Connection) -> None:
        # A writer that begins without the lock could read, wait for another writer, and then fail to upgrade.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if self._is_writer else "BEGIN")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if "full" in str(error.orig):
                raise StorageFullError("the disk of the catalogue is full") from error
            raise StorageUnavailableError(f"the catalogue cannot be used: {error.orig}", retry_after_s=2) from error
        except DatabaseError as error:
            raise _damaged(str(error.orig)) from error


def _damaged(finding: str) -> StorageUnavailableError:
    return StorageUnavailableError(f"the catalogue is damaged ({finding[:200]})", hint="restore it from a backup")


def _read_generation(connection: Connection) -> int:
    generation: int = connection.execute(select(_meta.c.generation)).scalar_one()
    return generation


def _bump(connection: Connection) -> int:
    generation: int = 1 + connection.execute(select(_meta.c.generation).with_for_update()).scalar_one()
    connection.execute(_meta.update().values(generation=generation))
    return generation


def _read_entry(connection: Connection, name: str) -> Entry | None:
    row = connection.execute(select(_adapters).where(_adapters.c.name == name)).first()
    if row is None or row.deleted:
        return None
    return Entry(row.active_version, MappingProxyType({}), row.changed_generation)


def _read_versions(connection: Connection, name: str) -> dict[int, VersionRow]:
    query = select(_versions).where(_versions.c.name == name, _versions.c.state == "kept").order_by("version")
    return {row.version: VersionRow(row.sha256, row.size_bytes, row.created_at) for row in connection.execute(query)}


def _write_entry(
    connection: Connection, name: str, active: int | None, generation: int, *, deleted: bool = False
) -> None:
    values = {"active_version": active, "changed_generation": generation, "deleted": deleted}
    updated = connection.execute(_adapters.update().where(_adapters.c.name == name).values(**values))
    if updated.rowcount == 0:
        connection.execute(_adapters.insert().values(name=name, **values))


def _require_entry(connection: Connection, name: str, if_match: Precondition) -> tuple[Entry, dict[int, VersionRow]]:
    entry = _read_entry(connection, name)
    if entry is None:
        raise AdapterNotFoundError(f"no adapter {name!r}", param="name")
    _check_precondition(name, entry, if_match)
    return entry, _read_versions(connection, name)


def _require_version(name: str, version: int, kept: Mapping[int, VersionRow]) -> VersionRow:
    if version not in kept:
        known = ", ".join(str(number) for number in list(kept)[-8:])
        raise VersionNotFoundError(
            f"adapter {name!r} has no version {version}", param="version", hint=f"kept versions end with: {known}"
        )
    return kept[version]


def _check_precondition(name: str, entry: Entry | None, if_match: Precondition) -> None:
    if if_match is None or (entry is not None and (if_match == "*" or entry.generation in if_match)):
        return
    found = "there is no such adapter" if entry is None else f'its ETag is "{entry.generation}"'
    raise PreconditionFailedError(
        f"If-Match does not hold for {name}: {found}", hint="read the adapter again and decide anew"
    )
