"""Which adapters exist: names, versions, which version is active, and one generation counter over all of it.

Every change is one transaction: the rows, the counter, a line in the log of changes, and the key of a request that may
be repeated. All SQL about adapters is here, its tables in `server.tables`. Knows nothing of HTTP, files of weights, or
the engine.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeVar

from sqlalchemy import Column, ColumnElement, Connection, func, select, true, tuple_

from server.database import Database
from server.errors import (
    AdapterNotFoundError,
    ConflictError,
    PreconditionFailedError,
    QuotaExceededError,
    StorageUnavailableError,
    VersionNotFoundError,
    unknown_adapter,
)
from server.records import (
    UNLIMITED,
    Addition,
    Change,
    Changes,
    Entry,
    Event,
    Listed,
    Once,
    Origin,
    Outcome,
    Precondition,
    Quota,
    Removal,
    Snapshot,
    SplitChange,
    VersionRow,
    outcome_from_json,
    outcome_to_json,
)
from server.split import Split
from server.tables import adapters, events, idempotency, meta, versions

# After a day nobody repeats a request.
REPEATABLE_FOR_S = 24 * 3600
HEAT_HALF_LIFE_S = 24 * 3600
_NOBODY = Origin()
_IS_KEPT = versions.c.state == "kept"

O = TypeVar("O", Change, SplitChange, Removal)  # noqa: E741


class Catalogue:
    """The catalogue in one database.

    Besides what each method says, all raise StorageUnavailableError and StorageFullError, as `Database` does. Every
    method blocks: call it off the event loop. Any thread.

    Writes take `origin`, for the log, and `once`: a request that was done before is not done again, and has the
    outcome it had. They raise ConflictError where its key came with another request.
    """

    def __init__(
        self, url: str, *, is_writer: bool, quota: Quota = UNLIMITED, keep_versions: int | None = None
    ) -> None:
        """Open; a writer makes or migrates the tables.

        quota          what each tenant may keep
        keep_versions  how many a name keeps beside those that answer; None for all
        """
        self._database = Database(url, is_writer=is_writer)
        self._quota = quota
        self._keep_versions = keep_versions
        self.is_shared = self._database.is_shared

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        self._database.close()

    def generation(self) -> int:
        """The counter alone: what a reader polls."""
        with self._database.read() as connection:
            return _read_generation(connection)

    def snapshot(self) -> Snapshot:
        """Everything that is kept, as of one generation."""
        changes = self.changes_since(-1)
        kept = {name: entry for name, entry in changes.adapters.items() if entry is not None}
        return Snapshot(changes.generation, MappingProxyType(kept))

    def changes_since(self, generation: int) -> Changes:
        """Every name that changed after `generation`, as it is now."""
        with self._database.read() as connection:
            where = adapters.c.changed_generation > generation
            return Changes(_read_generation(connection), MappingProxyType(_read_entries(connection, where)))

    def note_uses(self, uses: Mapping[str, int]) -> None:
        """Count calls by name; names that are not kept are passed over. No generation, and no line in the log."""
        now_s = int(time.time())
        with self._database.write() as connection:
            known = connection.execute(
                select(adapters.c.name, adapters.c.heat, adapters.c.heat_at_s).where(adapters.c.name.in_(uses))
            ).all()
            for row in known:
                heat = _heat_now(row.heat, row.heat_at_s, now_s) + uses[row.name]
                values = {"heat": heat, "heat_at_s": now_s}
                connection.execute(adapters.update().where(adapters.c.name == row.name).values(**values))

    def hottest(self) -> list[str]:
        """The names that were called, those called most and most recently first."""
        now_s = int(time.time())
        with self._database.read() as connection:
            query = select(adapters.c.name, adapters.c.heat, adapters.c.heat_at_s)
            rows = connection.execute(query.where(adapters.c.heat > 0, adapters.c.deleted.is_(False))).all()
        return [row.name for row in sorted(rows, key=lambda row: -_heat_now(row.heat, row.heat_at_s, now_s))]

    def page(self, limit: int, after: str = "", prefix: str = "") -> list[Listed]:
        """Up to `limit` names in order, those that begin with `prefix`, from behind `after` on."""
        with self._database.read() as connection:
            is_wanted = (adapters.c.name > after) & _begins_with(adapters.c.name, prefix)
            query = select(adapters.c.name).where(is_wanted, adapters.c.deleted.is_(False))
            names = list(connection.scalars(query.order_by(adapters.c.name).limit(limit)))
            return _listed(connection, names)

    def get(self, name: str) -> Listed | None:
        """One name, or None."""
        with self._database.read() as connection:
            return next(iter(_listed(connection, [name])), None)

    def history(self, name: str, limit: int) -> list[Event]:
        """The last changes of a name, newest first, those before it was deleted too."""
        columns = [column for column in events.c if column.name not in ("seq", "name")]
        query = select(*columns).where(events.c.name == name).order_by(events.c.seq.desc()).limit(limit)
        with self._database.read() as connection:
            return [Event(**row._mapping) for row in connection.execute(query)]

    def names_ever_held(self) -> set[str]:
        """Every name that ever existed, deleted ones too."""
        with self._database.read() as connection:
            return set(connection.scalars(select(adapters.c.name)))

    def is_referenced(self, sha256: str) -> bool:
        """Whether some kept version, of whatever name, has this content."""
        with self._database.read() as connection:
            return _is_referenced(connection, sha256)

    def referenced(self) -> set[str]:
        """The content of every kept version."""
        with self._database.read() as connection:
            return set(connection.scalars(select(versions.c.sha256).where(_IS_KEPT).distinct()))

    def configs(self, name: str) -> dict[int, str | None]:
        """The configuration of every kept version of a name, as JSON; None where it was never readable."""
        with self._database.read() as connection:
            query = select(versions.c.version, versions.c.config).where(versions.c.name == name, _IS_KEPT)
            return {row.version: row.config for row in connection.execute(query)}

    def without_config(self) -> set[str]:
        """The content of kept versions whose configuration was never written down."""
        with self._database.read() as connection:
            query = select(versions.c.sha256).where(_IS_KEPT, versions.c.config.is_(None)).distinct()
            return set(connection.scalars(query))

    def set_config(self, sha256: str, config: str) -> None:
        """Write down the configuration that this content has."""
        with self._database.write() as connection:
            connection.execute(versions.update().where(versions.c.sha256 == sha256).values(config=config))

    def outcome_of(self, once: Once) -> Outcome | None:
        """What this request did when it came before; None if it never did. Raises ConflictError for another one."""
        with self._database.read() as connection:
            return _read_outcome(connection, once)

    def add_version(
        self,
        name: str,
        sha256: str,
        size_bytes: int,
        *,
        config: str | None = None,
        no_effect: bool | None = None,
        activate: bool = True,
        if_match: Precondition = None,
        is_stored: Callable[[str], bool] | None = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Change:
        """Add a version, or find the kept one with the same content. Activating ends a split.

        is_stored  asked while no other writer can collect the content; if it says no, nothing is added
        Raises PreconditionFailedError, QuotaExceededError.
        """
        addition = Addition(name, sha256, size_bytes, config, no_effect)

        def add(connection: Connection) -> Change:
            [change] = _add(connection, [addition], activate, if_match, is_stored, origin, self._quota)
            self._retire_old(connection, [change], [name], origin)
            return change

        return self._write_once(once, add)

    def add_versions(
        self,
        additions: Sequence[Addition],
        *,
        activate: bool = True,
        is_stored: Callable[[str], bool] | None = None,
        origin: Origin = _NOBODY,
    ) -> list[Change]:
        """`add_version` for many at once, all or none, in their order; what changes has one generation."""
        with self._database.write() as connection:
            changes = _add(connection, additions, activate, None, is_stored, origin, self._quota)
            self._retire_old(connection, changes, [addition.name for addition in additions], origin)
            return changes

    def activate(
        self,
        name: str,
        version: int,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Change:
        """Let the bare name answer with this version, and with no other: a split ends.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError.
        """

        def write(connection: Connection) -> Change:
            entry = _require_entry(connection, name, if_match)
            row = _require_version(name, version, entry)
            generation = entry.generation
            if entry.active != version or entry.split is not None:
                generation = _bump(connection)
                _write_entry(connection, name, version, generation)
                _log(connection, origin, "activate", name, generation, version, row.sha256, version)
            return Change(version, row.sha256, generation, is_new=False, is_active=True, no_effect=row.no_effect)

        return self._write_once(once, write)

    def deactivate(self, name: str, *, origin: Origin = _NOBODY) -> Change:
        """Let the bare name answer no more; every version is kept, and a split ends. The change is of the former one.

        Raises AdapterNotFoundError, also where no version answers.
        """
        with self._database.write() as connection:
            entry = _require_entry(connection, name, None)
            if not entry.answers:
                raise AdapterNotFoundError(f"no version of {name!r} is active", param="name")
            version = entry.shown
            row = entry.versions[version]
            generation = _bump(connection)
            _write_entry(connection, name, None, generation)
            _log(connection, origin, "deactivate", name, generation, version, row.sha256, None)
            return Change(version, row.sha256, generation, is_new=False, is_active=False, no_effect=row.no_effect)

    def split(
        self,
        name: str,
        split: Split,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> SplitChange:
        """Share the calls to the bare name out among versions; without weights all go to the active one.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError; ConflictError where nothing is
        active and there are no weights.
        """

        def write(connection: Connection) -> SplitChange:
            entry = _require_entry(connection, name, if_match)
            if not split.weights and entry.active is None:
                raise ConflictError(f"no version of {name} is active", hint="activate one, or give weights")
            whole = split if split.weights else Split({entry.active or 0: 100}, split.shadow)
            for version in sorted(whole.versions()):
                _require_version(name, version, entry)
            generation = entry.generation
            if entry.split is None or entry.split.to_json() != whole.to_json():
                generation = _bump(connection)
                _write_entry(connection, name, entry.active, generation, split=whole)
                _log(connection, origin, "split", name, generation, None, None, entry.active)
            return SplitChange(whole, generation)

        return self._write_once(once, write)

    def delete_version(
        self,
        name: str,
        version: int,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Removal:
        """Remove one version that answers no call to the bare name.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError; ConflictError for the active one
        and for one that a split needs.
        """

        def write(connection: Connection) -> Removal:
            entry = _require_entry(connection, name, if_match)
            row = _require_version(name, version, entry)
            if entry.active == version:
                raise ConflictError(
                    f"version {version} of {name} is the active one",
                    param="version",
                    hint="activate another version first, or delete the name with all its versions",
                )
            if entry.split is not None and version in entry.split.versions():
                raise ConflictError(
                    f"version {version} of {name} takes part in its split",
                    param="version",
                    hint="activate a version, which ends the split, or split without this one",
                )
            this = (versions.c.name == name) & (versions.c.version == version)
            connection.execute(versions.update().where(this).values(state="deleted"))
            generation = _bump(connection)
            is_last = len(entry.versions) == 1
            _write_entry(connection, name, entry.active, generation, split=entry.split, deleted=is_last)
            _log(connection, origin, "delete", name, generation, version, row.sha256, entry.active)
            return Removal({version: row}, generation)

        return self._write_once(once, write)

    def delete_name(
        self, name: str, *, if_match: Precondition = None, origin: Origin = _NOBODY, once: Once | None = None
    ) -> Removal:
        """Remove a name with all its versions. Raises AdapterNotFoundError, PreconditionFailedError."""

        def write(connection: Connection) -> Removal:
            entry = _require_entry(connection, name, if_match)
            connection.execute(versions.update().where(versions.c.name == name).values(state="deleted"))
            generation = _bump(connection)
            _write_entry(connection, name, None, generation, deleted=True)
            for version, row in entry.versions.items():
                _log(connection, origin, "delete", name, generation, version, row.sha256, None)
            return Removal(dict(entry.versions), generation)

        return self._write_once(once, write)

    def collect(self, sha256: str, delete: Callable[[str], object]) -> None:
        """Have `delete` remove the content unless a kept version needs it.

        No writer anywhere can add a version with this content meanwhile: it asks whether it is stored afterwards.
        """
        with self._database.write() as connection:
            if not _is_referenced(connection, sha256):
                delete(sha256)

    def forget_requests(self) -> int:
        """Drop the keys of requests too old to be repeated. Returns how many."""
        with self._database.write() as connection:
            oldest_s = int(time.time()) - REPEATABLE_FOR_S
            return connection.execute(idempotency.delete().where(idempotency.c.created_s < oldest_s)).rowcount

    def _retire_old(
        self, connection: Connection, changes: Sequence[Change], names: Sequence[str], origin: Origin
    ) -> None:
        """Delete the oldest versions of names that got a new one; their bytes go when the store is tidied."""
        if self._keep_versions is None:
            return
        for name in dict.fromkeys(name for name, change in zip(names, changes, strict=True) if change.is_new):
            entry = _require_entry(connection, name, None)
            answering = {entry.active, *(entry.split.versions() if entry.split is not None else ())}
            spare = [number for number in entry.versions if number not in answering]
            for number in spare[: -self._keep_versions]:
                this = (versions.c.name == name) & (versions.c.version == number)
                connection.execute(versions.update().where(this).values(state="deleted"))
                _log(connection, origin, "retire", name, entry.generation, number, entry.versions[number].sha256,
                     entry.active)  # fmt: skip

    def _write_once(self, once: Once | None, write: Callable[[Connection], O]) -> O:
        with self._database.write() as connection:
            if once is None:
                return write(connection)
            former = _read_outcome(connection, once)
            if former is not None:
                # The hash of the request names its kind, so that the outcome is of the kind that `write` has.
                return former  # type: ignore[return-value]
            outcome = write(connection)
            row = {"key": once.key, "request": once.request, "outcome": outcome_to_json(outcome)}
            connection.execute(idempotency.insert().values(**row, created_s=int(time.time())))
            return outcome


def _add(
    connection: Connection,
    additions: Sequence[Addition],
    activate: bool,
    if_match: Precondition,
    is_stored: Callable[[str], bool] | None,
    origin: Origin,
    quota: Quota,
) -> list[Change]:
    generation = _read_generation(connection) + 1  # of what changes; the counter moves at the end, if anything did
    changes = []
    for addition in additions:
        name, sha256 = addition.name, addition.sha256
        entry = _read_entry(connection, name)
        _check_precondition(name, entry, if_match)
        if is_stored is not None and not is_stored(sha256):
            raise StorageUnavailableError(
                f"the bytes of {name} were removed from the store meanwhile; nothing was registered",
                hint="send the upload again",
                retry_after_s=1,
            )
        kept = entry.versions if entry else {}
        version = next((number for number, row in kept.items() if row.sha256 == sha256), None)
        is_new = version is None
        if version is None:
            _check_quota(connection, quota, addition, is_new_name=entry is None)
            version = 1 + (connection.scalar(select(func.max(versions.c.version)).filter_by(name=name)) or 0)
            row = {"sha256": sha256, "size_bytes": addition.size_bytes, "config": addition.config}
            row |= {"no_effect": addition.no_effect, "created_at": _now(), "state": "kept"}
            connection.execute(versions.insert().values(name=name, version=version, **row))
        active = version if activate else (entry.active if entry else None)
        split = None if activate or entry is None else entry.split
        if entry and not is_new and active == entry.active and split == entry.split:
            changes.append(Change(version, sha256, entry.generation, False, active == version, addition.no_effect))
            continue
        _write_entry(connection, name, active, generation, split=split)
        _log(connection, origin, "register" if is_new else "activate", name, generation, version, sha256, active)
        changes.append(Change(version, sha256, generation, is_new, active == version, addition.no_effect))
    if any(change.generation == generation for change in changes):
        _bump(connection)
    return changes


def _heat_now(heat: float, heat_at_s: int, now_s: int) -> float:
    # A clock that was set back must not make anything hotter.
    return heat * math.exp2(-max(0, now_s - heat_at_s) / HEAT_HALF_LIFE_S)


def _check_quota(connection: Connection, quota: Quota, addition: Addition, *, is_new_name: bool) -> None:
    tenant, slash, _ = addition.name.partition("/")
    if not slash or quota == UNLIMITED:
        return
    kept = _begins_with(versions.c.name, f"{tenant}/") & _IS_KEPT
    columns = func.count(versions.c.name.distinct()), func.coalesce(func.sum(versions.c.size_bytes), 0)
    names, size_bytes = connection.execute(select(*columns).where(kept)).one()
    if quota.adapters is not None and is_new_name and names >= quota.adapters:
        raise QuotaExceededError(
            f"{tenant} has {names} adapters, and may have {quota.adapters}",
            hint="delete one it no longer needs; ADAKRON_TENANT_ADAPTERS is the server's setting",
        )
    if quota.size_bytes is not None and size_bytes + addition.size_bytes > quota.size_bytes:
        raise QuotaExceededError(
            f"{tenant} keeps {size_bytes} bytes, and may keep {quota.size_bytes}; this artefact has "
            f"{addition.size_bytes}",
            hint="delete versions it no longer needs; ADAKRON_TENANT_BYTES is the server's setting",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _log(
    connection: Connection,
    origin: Origin,
    action: str,
    name: str,
    generation: int,
    version: int | None,
    sha256: str | None,
    active_version: int | None,
) -> None:
    what = {"action": action, "name": name, "version": version, "sha256": sha256, "active_version": active_version}
    who = {"key_id": origin.key_id, "source": origin.source, "request_id": origin.request_id}
    connection.execute(events.insert().values(at=_now(), generation=generation, **what, **who))


def _read_outcome(connection: Connection, once: Once) -> Outcome | None:
    row = connection.execute(select(idempotency).where(idempotency.c.key == once.key)).first()
    if row is None:
        return None
    if row.request != once.request:
        raise ConflictError(
            "this Idempotency-Key came with another request before",
            param="Idempotency-Key",
            hint="use a new key for each new request",
        )
    return outcome_from_json(row.outcome)


def _read_generation(connection: Connection) -> int:
    generation: int = connection.execute(select(meta.c.generation)).scalar_one()
    return generation


def _bump(connection: Connection) -> int:
    generation = _read_generation(connection) + 1
    connection.execute(meta.update().values(generation=generation))
    return generation


def _is_referenced(connection: Connection, sha256: str) -> bool:
    query = select(versions.c.name).where(versions.c.sha256 == sha256, _IS_KEPT).limit(1)
    return connection.execute(query).first() is not None


def _begins_with(column: Column[str], prefix: str) -> ColumnElement[bool]:
    # A range, as an index has it and LIKE on SQLite has not; names are ASCII, so that there is a character after any.
    if not prefix:
        return true()
    return (column >= prefix) & (column < prefix[:-1] + chr(ord(prefix[-1]) + 1))


def _read_entries(connection: Connection, where: ColumnElement[bool]) -> dict[str, Entry | None]:
    """The entries of all names that `where` holds for, in order; None for a deleted one."""
    rows = connection.execute(select(adapters).where(where).order_by(adapters.c.name)).all()
    columns = (versions.c.name, versions.c.version, versions.c.sha256, versions.c.size_bytes)
    query = select(*columns, versions.c.created_at, versions.c.no_effect).join(
        adapters, adapters.c.name == versions.c.name
    )
    kept: dict[str, dict[int, VersionRow]] = {}
    for row in connection.execute(query.where(where, _IS_KEPT).order_by(versions.c.version)):
        kept.setdefault(row.name, {})[row.version] = VersionRow(
            row.sha256, row.size_bytes, row.created_at, row.no_effect
        )
    return {
        row.name: None
        if row.deleted
        else Entry(
            row.active_version,
            MappingProxyType(kept.get(row.name, {})),
            row.changed_generation,
            None if row.split is None else Split.from_json(row.split),
        )
        for row in rows
    }


def _read_entry(connection: Connection, name: str) -> Entry | None:
    return _read_entries(connection, adapters.c.name == name).get(name)


def _listed(connection: Connection, names: Collection[str]) -> list[Listed]:
    entries = _read_entries(connection, adapters.c.name.in_(names))
    kept = {name: entry for name, entry in entries.items() if entry is not None}
    configs = _read_configs(connection, {name: entry.shown for name, entry in kept.items()}.items())
    return [Listed(name, entry, configs[name]) for name, entry in kept.items()]


def _read_configs(connection: Connection, shown: Iterable[tuple[str, int]]) -> Mapping[str, str | None]:
    query = select(versions.c.name, versions.c.config)
    rows = connection.execute(query.where(tuple_(versions.c.name, versions.c.version).in_(list(shown))))
    return {row.name: row.config for row in rows}


def _write_entry(
    connection: Connection,
    name: str,
    active: int | None,
    generation: int,
    *,
    split: Split | None = None,
    deleted: bool = False,
) -> None:
    values = {
        "active_version": active,
        "changed_generation": generation,
        "split": None if split is None else split.to_json(),
        "deleted": deleted,
    }
    updated = connection.execute(adapters.update().where(adapters.c.name == name).values(**values))
    if updated.rowcount == 0:
        connection.execute(adapters.insert().values(name=name, **values))


def _require_entry(connection: Connection, name: str, if_match: Precondition) -> Entry:
    entry = _read_entry(connection, name)
    if entry is None:
        raise unknown_adapter(name)
    _check_precondition(name, entry, if_match)
    return entry


def _require_version(name: str, version: int, entry: Entry) -> VersionRow:
    if version not in entry.versions:
        known = ", ".join(str(number) for number in list(entry.versions)[-8:])
        raise VersionNotFoundError(
            f"adapter {name!r} has no version {version}", param="version", hint=f"kept versions end with: {known}"
        )
    return entry.versions[version]


def _check_precondition(name: str, entry: Entry | None, if_match: Precondition) -> None:
    if if_match is None or (entry is not None and (if_match == "*" or entry.generation in if_match)):
        return
    found = "there is no such adapter" if entry is None else f'its ETag is "{entry.generation}"'
    raise PreconditionFailedError(
        f"If-Match does not hold for {name}: {found}", hint="read the adapter again and decide anew"
    )
