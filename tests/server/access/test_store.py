"""Keys in the database: what is kept, what is not, on SQLite and on PostgreSQL."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.access.keys import digest_of
from server.access.store import KeyStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import StorageUnavailableError
from tests.server.postgres import new_database
from tests.server.test_database import write_format_1


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return new_database(request.getfixturevalue("postgres"))
    return sqlite_url(tmp_path / "catalogue.sqlite")


@pytest.fixture
def store(url: str) -> Iterator[KeyStore]:
    opened = KeyStore(url, is_writer=True)
    yield opened
    opened.close()


def test_created_key_is_kept_with_all_but_its_secret(store: KeyStore) -> None:
    secret, key = store.create(
        ["read", "classify"], prefix="acme/", expires_s=2_000_000_000, rows_per_minute=60, note="build"
    )
    assert store.all() == (1, [key])
    assert (key.scopes, key.prefix, key.expires_s) == (frozenset({"classify", "read"}), "acme/", 2_000_000_000)
    assert (key.rows_per_minute, key.note, key.revoked_s) == (60, "build", None)
    assert key.digest == digest_of(secret.encode())


def test_secret_is_in_no_byte_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    store = KeyStore(sqlite_url(path), is_writer=True)
    secret, key = store.create(["admin"])
    store.close()
    assert key.id.encode() in path.read_bytes()
    assert secret.rpartition("_")[2].encode() not in path.read_bytes()


def test_revoked_key_stays_as_revoked_and_moves_the_counter(store: KeyStore) -> None:
    _, key = store.create(["admin"])
    assert store.revoke(key.id)
    generation, [revoked] = store.all()
    assert generation == store.generation() == 2
    assert revoked.revoked_s is not None
    assert store.revoke(key.id)
    assert store.all() == (2, [revoked])


def test_revoking_what_is_not_there_says_so(store: KeyStore) -> None:
    assert not store.revoke("nobody")
    assert store.generation() == 0


def test_reader_follows_a_writer_and_cannot_write(store: KeyStore, url: str) -> None:
    reader = KeyStore(url, is_writer=False)
    _, key = store.create(["read"])
    assert reader.all() == (1, [key])
    if url.startswith("sqlite"):
        with pytest.raises(StorageUnavailableError):
            reader.create(["admin"])
    reader.close()


def test_keys_are_written_beside_a_running_writer_of_the_catalogue(store: KeyStore, url: str) -> None:
    catalogue = Catalogue(url, is_writer=True)
    store.create(["admin"])
    catalogue.add_version("x", "a" * 64, 1)
    store.create(["read"])
    assert (catalogue.generation(), store.generation()) == (1, 2)
    catalogue.close()


def test_catalogue_of_an_earlier_format_gains_keys(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    write_format_1(path)
    store = KeyStore(sqlite_url(path), is_writer=True)
    assert store.all() == (0, [])
    store.create(["read"])
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT generation, keys_generation FROM meta").fetchone() == (7, 1)
    connection.close()
