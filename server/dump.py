"""The whole of a catalogue's database as lines of JSON, and a database filled from such lines.

    {"table": "adapters", "row": {"name": "sst2", "active_version": 1, ...}}

The lines say nothing of the database they came from: what was read from SQLite may be written to PostgreSQL. Knows
tables and rows; nothing of what they mean, but for the counters in `meta`.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from server.database import BUSY_TIMEOUT_S, Database, holds_catalogue, parse_url, sqlite_url
from server.errors import StorageUnavailableError
from server.records import RESTORED_LEAP
from server.tables import adapters, events, idempotency, keys, meta, metadata, versions

# In this order they are written: what others refer to comes first.
TABLES = (meta, adapters, versions, events, idempotency, keys)
ROWS_AT_ONCE = 1000


class Line(NamedTuple):
    """One row of one table."""

    table: str
    row: dict[str, Any]


class Counters(NamedTuple):
    """The counters of a catalogue: of its changes, and of those to its keys."""

    generation: int
    keys_generation: int


@contextmanager
def held_still(url: str) -> Iterator[Iterator[Line]]:
    """Every row as of one moment, table by table, however long it takes to read them: no writer waits meanwhile.

    Raises StorageUnavailableError.
    """
    with tempfile.TemporaryDirectory(prefix="adakron-dump-") as scratch:
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            # A reader of the file itself would keep its writer from committing.
            url = _copy(Path(str(parsed.database)), Path(scratch) / "catalogue.sqlite")
        with closing(Database(url, is_writer=False)) as database, database.read() as connection:
            yield _lines(connection)


def counters(url: str) -> Counters | None:
    """Where a catalogue stands; None where there is none. Raises StorageUnavailableError."""
    if not holds_catalogue(url):
        return None
    with closing(Database(url, is_writer=False)) as database, database.read() as connection:
        return _counters(connection)


def replace(url: str, lines: Iterable[Line]) -> Counters:
    """Let the database hold these rows and no others, all in one transaction; its tables are made if need be.

    Both counters leap past whatever they were, here and in the lines: no number is given twice, not even one that was
    given after the lines were read. Returns them. Raises StorageUnavailableError, StorageFullError.
    """
    with closing(Database(url, is_writer=True)) as database, database.write() as connection:
        former = _counters(connection)
        revoked = connection.execute(select(keys.c.id, keys.c.revoked_s).where(keys.c.revoked_s.is_not(None))).all()
        for table in reversed(TABLES):
            connection.execute(table.delete())
        for name, group in groupby(lines, key=lambda line: line.table):
            table = metadata.tables[name]
            while some := [line.row for line in islice(group, ROWS_AT_ONCE)]:
                connection.execute(table.insert(), some)
        for key in revoked:  # a key that was ended since then does not come back to life
            ended = keys.update().where(keys.c.id == key.id, keys.c.revoked_s.is_(None))
            connection.execute(ended.values(revoked_s=key.revoked_s))
        if database.is_shared:  # it numbers rows by a counter of its own, which knows nothing of rows that bring theirs
            last = select(func.coalesce(func.max(events.c.seq), 0) + 1).scalar_subquery()
            connection.execute(select(func.setval(func.pg_get_serial_sequence("events", "seq"), last, False)))
        found = _counters(connection)
        leapt = Counters(
            max(former.generation, found.generation) + RESTORED_LEAP,
            max(former.keys_generation, found.keys_generation) + 1,
        )
        connection.execute(meta.update().values(**leapt._asdict()))
        return leapt


def to_json(line: Line) -> str:
    """One line of text."""
    return json.dumps(line._asdict(), ensure_ascii=False)


def from_json(text: str) -> Line:
    """What `to_json` wrote. Raises ValueError."""
    parsed = json.loads(text)
    if not isinstance(parsed, dict) or parsed.keys() != {"table", "row"} or parsed["table"] not in metadata.tables:
        raise ValueError("not a row of a catalogue")
    columns = metadata.tables[parsed["table"]].columns.keys()
    if not isinstance(parsed["row"], dict) or parsed["row"].keys() != set(columns):
        raise ValueError(f"not a row of {parsed['table']}")
    return Line(parsed["table"], parsed["row"])


def _lines(connection: Connection) -> Iterator[Line]:
    for table in TABLES:
        order = list(table.primary_key)
        for row in connection.execute(select(table).order_by(*order), execution_options={"yield_per": ROWS_AT_ONCE}):
            yield Line(table.name, dict(row._mapping))


def _counters(connection: Connection) -> Counters:
    return Counters(*connection.execute(select(meta.c.generation, meta.c.keys_generation)).one())


def _copy(source: Path, target: Path) -> str:
    if not source.exists():
        raise StorageUnavailableError("there is no catalogue here to back up")
    try:
        with (
            closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as original,
            closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
    except sqlite3.Error as error:
        raise StorageUnavailableError(f"the catalogue cannot be read: {error}") from error
    return sqlite_url(target)
