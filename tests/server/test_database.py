"""The database: durable settings, one writer, migrations, and a clear word about a file that is damaged or newer."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from server.catalogue import Catalogue
from server.database import Database, holds_catalogue, parse_url, sqlite_url
from server.errors import StorageFullError, StorageUnavailableError
from server.tables import FORMAT_VERSION, metadata
from tests.server.postgres import new_database

A = "a" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.sqlite"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    opened = Catalogue(sqlite_url(path), is_writer=True)
    yield opened
    opened.close()


def test_acknowledged_change_is_there_after_reopening(catalogue: Catalogue, path: Path) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.close()
    again = Catalogue(sqlite_url(path), is_writer=True)
    assert again.snapshot().adapters["x"].active == 1
    again.close()


def test_reader_sees_what_the_writer_committed(catalogue: Catalogue, path: Path) -> None:
    reader = Catalogue(sqlite_url(path), is_writer=False)
    catalogue.add_version("x", A, 1)
    assert reader.generation() == 1
    assert list(reader.snapshot().adapters) == ["x"]
    reader.close()


def test_reader_cannot_write(catalogue: Catalogue, path: Path) -> None:
    reader = Catalogue(sqlite_url(path), is_writer=False)
    with pytest.raises(StorageUnavailableError):
        reader.add_version("x", A, 1)
    reader.close()
    assert catalogue.generation() == 0


def test_reader_of_a_missing_file_raises_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError):
        Catalogue(sqlite_url(tmp_path / "none.sqlite"), is_writer=False)
    assert list(tmp_path.iterdir()) == []


def test_file_settings_are_the_durable_ones(catalogue: Catalogue) -> None:
    with catalogue._database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3


def test_newer_format_is_refused_by_number(catalogue: Catalogue, path: Path) -> None:
    catalogue.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET format_version = 7")
    connection.close()
    with pytest.raises(StorageUnavailableError, match="format_version 7; this release reads 4"):
        Catalogue(sqlite_url(path), is_writer=True)


def test_torn_file_is_refused(catalogue: Catalogue, path: Path) -> None:
    for index in range(60):
        catalogue.add_version(f"n{index}", A, 1)
    catalogue.close()
    data = bytearray(path.read_bytes())
    data[4096:12288] = b"\xff" * 8192
    path.write_bytes(data)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        Catalogue(sqlite_url(path), is_writer=True)


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        Catalogue(sqlite_url(path), is_writer=True)
    assert path.read_bytes().startswith(b"not a database")


def test_full_disk_is_named_and_changes_nothing(catalogue: Catalogue) -> None:
    with catalogue._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for index in range(2000):
            catalogue.add_version(f"n{index}", f"{index:064x}", 1)

    with pytest.raises(StorageFullError):
        fill()
    snapshot = catalogue.snapshot()
    assert snapshot.generation == len(snapshot.adapters)


def test_killed_writer_leaves_whole_transactions(path: Path) -> None:
    Catalogue(sqlite_url(path), is_writer=True).close()
    program = (
        "import sys; from server.catalogue import Catalogue\n"
        "c = Catalogue(sys.argv[1], is_writer=True)\n"
        "for i in range(10**6):\n"
        "    print(c.add_version(f'n{i % 7}', f'{i:064x}', i).generation, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, sqlite_url(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = 0
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged >= 25:
            break
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    acknowledged = int(rest[-1]) if rest else acknowledged
    survived = Catalogue(sqlite_url(path), is_writer=True)
    snapshot = survived.snapshot()
    survived.close()
    assert snapshot.generation in (acknowledged, acknowledged + 1)
    assert sum(len(entry.versions) for entry in snapshot.adapters.values()) == snapshot.generation


def test_journal_of_a_killed_writer_is_rolled_back_by_a_reader(
    catalogue: Catalogue, path: Path, tmp_path: Path
) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.close()
    torn = sqlite3.connect(path, isolation_level=None)
    torn.execute("PRAGMA cache_size = 1")
    torn.execute("PRAGMA cache_spill = ON")
    torn.execute("BEGIN IMMEDIATE")
    for index in range(3000):
        torn.execute("INSERT INTO versions VALUES (?, 1, ?, 1, '', 'kept', NULL, NULL)", (f"half{index}", A))
    left = tmp_path / "left"
    left.mkdir()
    for file in tmp_path.glob("catalogue.sqlite*"):
        shutil.copy(file, left)
    torn.execute("ROLLBACK")
    torn.close()
    assert (left / "catalogue.sqlite-journal").exists()
    reader = Catalogue(sqlite_url(left / "catalogue.sqlite"), is_writer=False)
    assert list(reader.snapshot().adapters) == ["x"]
    assert not any(reader.is_referenced(f"{index:064x}") for index in range(2))
    reader.close()


FORMAT_1 = """
CREATE TABLE meta (id INTEGER NOT NULL, generation INTEGER NOT NULL, format_version INTEGER NOT NULL, PRIMARY KEY (id));
CREATE TABLE adapters (name VARCHAR(160) NOT NULL, active_version INTEGER, changed_generation INTEGER NOT NULL,
    deleted BOOLEAN NOT NULL, PRIMARY KEY (name));
CREATE TABLE versions (name VARCHAR(160) NOT NULL, version INTEGER NOT NULL, sha256 VARCHAR(64) NOT NULL,
    size_bytes INTEGER NOT NULL, created_at VARCHAR(32) NOT NULL, state VARCHAR(16) NOT NULL,
    PRIMARY KEY (name, version));
CREATE INDEX ix_versions_sha256 ON versions (sha256);
INSERT INTO meta VALUES (1, 7, 1);
INSERT INTO adapters VALUES ('x', 2, 7, 0);
INSERT INTO adapters VALUES ('gone', NULL, 5, 1);
INSERT INTO versions VALUES ('x', 1, 'aa', 10, '2026-11-23T15:54:09+00:00', 'kept');
INSERT INTO versions VALUES ('x', 2, 'bb', 11, '2026-11-23T15:55:09+00:00', 'kept');
INSERT INTO versions VALUES ('gone', 1, 'cc', 12, '2026-11-23T15:56:09+00:00', 'deleted');
"""


def write_format_1(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(FORMAT_1)
    connection.close()


def test_file_of_format_1_is_migrated_with_all_that_is_in_it(path: Path) -> None:
    write_format_1(path)
    catalogue = Catalogue(sqlite_url(path), is_writer=True)
    snapshot = catalogue.snapshot()
    entry = snapshot.adapters["x"]
    assert (snapshot.generation, list(snapshot.adapters), entry.active, entry.split) == (7, ["x"], 2, None)
    assert [(row.sha256, row.size_bytes, row.no_effect) for row in entry.versions.values()] == [
        ("aa", 10, None),
        ("bb", 11, None),
    ]
    assert catalogue.add_version("gone", A, 1).version == 2
    assert catalogue.names_ever_held() == {"x", "gone"}
    catalogue.close()


def test_reader_of_an_older_format_is_told_what_it_found(path: Path) -> None:
    write_format_1(path)
    with pytest.raises(StorageUnavailableError, match="format_version 1; this release reads 4"):
        Catalogue(sqlite_url(path), is_writer=False)


def test_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_format_1(path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE idempotency (in_the_way INTEGER)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageUnavailableError):
        Catalogue(sqlite_url(path), is_writer=True)
    assert path.read_bytes() == before


def test_migrated_tables_are_those_of_the_code(path: Path) -> None:
    database = Database(sqlite_url(path), is_writer=True)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_migrated_tables_on_postgres_are_those_of_the_code(postgres: str) -> None:
    database = Database(new_database(postgres), is_writer=True)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_newer_format_on_postgres_is_refused_by_number(postgres: str) -> None:
    url = new_database(postgres)
    database = Database(url, is_writer=True)
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE meta SET format_version = {FORMAT_VERSION + 1}")
    database.close()
    for is_writer in (True, False):
        with pytest.raises(StorageUnavailableError, match=f"format_version {FORMAT_VERSION + 1}"):
            Database(url, is_writer=is_writer)


def test_postgres_without_a_catalogue_is_said_to_have_none(postgres: str) -> None:
    url = new_database(postgres)
    assert not holds_catalogue(url)
    with pytest.raises(StorageUnavailableError, match="does not exist yet"):
        Database(url, is_writer=False)
    Database(url, is_writer=True).close()
    assert holds_catalogue(url)


def test_postgres_acknowledges_only_what_is_on_disk(postgres: str) -> None:
    database = Database(new_database(postgres), is_writer=True)
    with database.write() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW fsync").scalar() == "on"
    database.close()


def test_database_that_is_away_is_unavailable_without_a_word_of_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    url = "postgresql://somebody:secret@127.0.0.1:1/nothing"
    with pytest.raises(StorageUnavailableError, match="does not answer") as caught:
        Database(url, is_writer=True)
    assert "127.0.0.1" not in str(caught.value)
    assert "secret" not in caplog.text + repr(caught.value)
    with pytest.raises(StorageUnavailableError):
        holds_catalogue(url)


def test_database_that_comes_back_is_used_again(postgres: str) -> None:
    import psycopg

    catalogue = Catalogue(new_database(postgres), is_writer=True)
    catalogue.add_version("x", A, 1)
    with psycopg.connect(postgres, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'catalogue_%'")
    assert catalogue.add_version("y", A, 1).generation == 2
    catalogue.close()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "postgresql+asyncpg://host/db"]
)
def test_url_of_another_database_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"database URL|expected sqlite") as caught:
        parse_url(url)
    assert "mysql" not in str(caught.value)
