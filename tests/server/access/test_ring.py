"""The keys in memory: which open, when a change is known, and that all wrong keys cost the same."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.access import ring as ring_module
from server.access.keys import make_key
from server.access.ring import KeyRing
from server.access.store import KeyStore
from server.database import sqlite_url
from server.errors import StorageUnavailableError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    opened = KeyStore(sqlite_url(tmp_path / "catalogue.sqlite"), is_writer=True)
    yield opened
    opened.close()


def ring_of(store: KeyStore, *, may_be_open: bool = True) -> KeyRing:
    ring = KeyRing(store, may_be_open=may_be_open, poll_interval_s=0.02)
    ring.load()
    return ring


def test_right_key_is_found_and_wrong_ones_are_not(store: KeyStore) -> None:
    secret, key = store.create(["read"])
    other, _ = store.create(["read"])
    ring = ring_of(store)
    assert ring.find(secret.encode()) == key
    mixed = secret[:16] + other[16:]
    for wrong in (b"", b"ad_", make_key()[0].encode(), mixed.encode(), secret[:-1].encode(), b"\xff" * 59):
        assert ring.find(wrong) is None


def test_expired_and_revoked_keys_are_not_found(store: KeyStore) -> None:
    expired, _ = store.create(["read"], expires_s=int(time.time()) - 1)
    revoked, key = store.create(["read"])
    store.revoke(key.id)
    ring = ring_of(store)
    assert ring.find(expired.encode()) is None
    assert ring.find(revoked.encode()) is None


def test_key_stops_at_its_very_time(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, _ = store.create(["read"], expires_s=1000)
    ring = ring_of(store)
    now_s = 999.9
    monkeypatch.setattr(ring_module.time, "time", lambda: now_s)
    assert ring.find(secret.encode()) is not None
    now_s = 1000.0
    assert ring.find(secret.encode()) is None


def test_ring_is_open_only_where_it_may_be_and_no_key_was_ever_made(store: KeyStore) -> None:
    ring, public = ring_of(store), ring_of(store, may_be_open=False)
    assert (ring.is_open, public.is_open) == (True, False)
    _, key = store.create(["read"])
    store.revoke(key.id)
    ring.load()
    assert not ring.is_open


async def test_changes_are_followed_without_being_asked_for(store: KeyStore, tmp_path: Path) -> None:
    ring = ring_of(KeyStore(sqlite_url(tmp_path / "catalogue.sqlite"), is_writer=False))
    await ring.start()
    secret, key = store.create(["read"])
    for _ in range(200):
        if ring.find(secret.encode()):
            break
        await asyncio.sleep(0.02)
    assert ring.find(secret.encode()) == key
    store.revoke(key.id)
    for _ in range(200):
        if ring.find(secret.encode()) is None:
            break
        await asyncio.sleep(0.02)
    assert ring.find(secret.encode()) is None
    await ring.stop()


async def test_known_keys_go_on_working_while_the_database_is_away(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret, key = store.create(["read"])
    ring = ring_of(store)

    def away() -> int:
        raise StorageUnavailableError("the catalogue's database does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(store, "generation", away)
        await ring.start()
        await asyncio.sleep(0.1)
        assert ring.find(secret.encode()) == key
        assert "cannot be read" in caplog.text
    other, _ = store.create(["read"])
    for _ in range(200):
        if ring.find(other.encode()):
            break
        await asyncio.sleep(0.02)
    assert ring.find(other.encode()) is not None
    await ring.stop()


def test_every_wrong_key_is_hashed_and_compared_once(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, key = store.create(["read"])
    store.revoke(key.id)
    ring = ring_of(store)
    compared: list[int] = []
    monkeypatch.setattr(ring_module, "is_same", lambda offered, digest: compared.append(len(digest)) or False)
    for wrong in (b"", b"ad_x", make_key()[0].encode(), secret.encode(), secret[:-1].encode() + b"!"):
        compared.clear()
        ring.find(wrong)
        assert compared == [64]
