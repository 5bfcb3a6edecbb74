"""The database under the catalogue: opened, checked, migrated, and its errors made ours. SQLite, or PostgreSQL by URL.

    read    a transaction that sees one moment, and blocks nobody for long
    write   a transaction that is alone: on SQLite by the file's lock, on PostgreSQL by the row of the counter

SQLite runs in its rollback-journal mode with synchronous=EXTRA, so that an acknowledged change survives a power cut,
and has one writing server; `adakron keys` may write beside it. On PostgreSQL any number of servers write. Knows nothing
of what the tables mean.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from server.errors import StorageFullError, StorageUnavailableError
from server.tables import FORMAT_VERSION, meta

BUSY_TIMEOUT_S = 5
_MIGRATIONS = Path(__file__).with_name("migrations")
# Servers that start together migrate one after another: any number will do, if all of them use the same one.
_MIGRATION_LOCK = 0x61_64_61_6B
_DISK_FULL = "53100"

log = logging.getLogger(__name__)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def parse_url(url: str) -> URL:
    """sqlite:///FILE or postgresql://...; with the driver that is used. Raises ValueError, without the URL's text."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("not a database URL") from None  # which would quote it, and with it a password
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    raise ValueError("expected sqlite:////path/to/file or postgresql://user@host/database")


class Database:
    """One database, used by any thread.

    Raises StorageUnavailableError where it is damaged, newer than this release, locked for 5 s or away;
    StorageFullError where its disk is full.
    """

    def __init__(self, url: str, *, is_writer: bool) -> None:
        """Open; a writer first makes or migrates the tables, and checks the whole of a SQLite file."""
        self.url = parse_url(url)
        self.is_shared = self.url.get_backend_name() == "postgresql"
        self._is_writer = is_writer
        if self.is_shared:
            self._engine = create_engine(
                self.url,
                pool_pre_ping=True,
                pool_timeout=BUSY_TIMEOUT_S,
                connect_args={
                    "connect_timeout": BUSY_TIMEOUT_S,
                    # An acknowledged change is on disk, whatever the server's own default is.
                    "options": f"-c lock_timeout={BUSY_TIMEOUT_S}s -c statement_timeout={2 * BUSY_TIMEOUT_S}s "
                    "-c synchronous_commit=on",
                },
            )
        else:
            self._open_sqlite()
        try:
            if is_writer:
                self._migrate()
            self._check_format()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection; the object is of no use afterwards."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction in which every statement sees the same moment."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if self.is_shared else {}
        with self._transaction(**options) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside, committed at the end."""
        with self._transaction(is_write=True) as connection:
            if self.is_shared:
                connection.execute(select(meta.c.generation).with_for_update())
            yield connection

    def _open_sqlite(self) -> None:
        path = Path(str(self.url.database))
        if not self._is_writer and not path.exists():
            raise StorageUnavailableError("the catalogue does not exist yet")
        self._engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(self._engine, "connect", self._prepare_sqlite)
        event.listen(self._engine, "begin", _begin_sqlite)

    def _prepare_sqlite(self, connection: Any, record: object) -> None:
        connection.isolation_level = None  # else sqlite3 begins transactions by itself, and never IMMEDIATE ones
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        if not self._is_writer:
            # Not a read-only file: the first to open after a crash of the writer must be able to roll back its journal.
            connection.execute("PRAGMA query_only = ON")

    def _migrate(self) -> None:
        with self._transaction(is_write=True) as connection:
            if self.is_shared:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            else:
                verdict = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
                if verdict != "ok":
                    raise _damaged(str(verdict))
            found = _read_format(connection)
            if found == FORMAT_VERSION:
                return
            if found is not None and found > FORMAT_VERSION:
                raise _unread(found)
            # Here, because a replica, which only reads, starts so much sooner.
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            if found == 1:  # written before there were migrations, which is why it does not say where it stands
                command.stamp(config, "v1")
            command.upgrade(config, "head")

    def _check_format(self) -> None:
        with self.read() as connection:
            found = _read_format(connection)
        if found is None:
            raise StorageUnavailableError("the catalogue does not exist yet")
        if found != FORMAT_VERSION:
            raise _unread(found)

    @contextmanager
    def _transaction(self, **options: Any) -> Iterator[Connection]:
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**options)
                with connection.begin():
                    yield connection
        except PoolTimeoutError as error:
            raise StorageUnavailableError("the catalogue is busy", retry_after_s=2) from error
        except DBAPIError as error:
            raise self._ours(error) from error

    def _ours(self, error: DBAPIError) -> StorageUnavailableError | StorageFullError:
        reason = str(error.orig)
        if self.is_shared:
            if getattr(error.orig, "sqlstate", None) == _DISK_FULL:
                return StorageFullError("the disk of the catalogue is full")
            # Its text may name hosts and users, which a client has no business knowing.
            log.error("the catalogue's database failed: %s", reason)
            return StorageUnavailableError("the catalogue's database does not answer", retry_after_s=2)
        if isinstance(error, OperationalError):
            if "full" in reason:
                return StorageFullError("the disk of the catalogue is full")
            return StorageUnavailableError(f"the catalogue cannot be used: {reason}", retry_after_s=2)
        return _damaged(reason)


def holds_catalogue(url: str) -> bool:
    """Whether there are tables of a catalogue, without making any. Raises StorageUnavailableError."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        return False
    engine = create_engine(parsed, connect_args={} if parsed.get_backend_name() == "sqlite" else {"connect_timeout": 5})
    try:
        return inspect(engine).has_table("meta")
    except OperationalError as error:
        log.error("the catalogue's database failed: %s", error.orig)
        raise StorageUnavailableError("the catalogue's database does not answer") from error
    except DBAPIError:
        return True  # something is there, and opening it will say what is wrong with it
    finally:
        engine.dispose()


def _begin_sqlite(connection: Connection) -> None:
    # A writer that begins without the lock could read, wait for another writer, and then fail to upgrade.
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _read_format(connection: Connection) -> int | None:
    if not inspect(connection).has_table("meta"):
        return None
    return connection.scalar(select(meta.c.format_version))


def _unread(found: int) -> StorageUnavailableError:
    return StorageUnavailableError(
        f"the catalogue has format_version {found}; this release reads {FORMAT_VERSION}",
        hint="start the release that wrote it, or give ADAKRON_STATE_DIR another folder",
    )


def _damaged(finding: str) -> StorageUnavailableError:
    return StorageUnavailableError(f"the catalogue is damaged ({finding[:200]})", hint="restore it from a backup")
