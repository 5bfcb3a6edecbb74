"""A replica follows the catalogue: atomically, in spite of damaged blobs, and whether or not it is told."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adakron import Adapter
from adakron.errors import BankFullError, BaseMismatchError
from server import dump
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import AdapterNotFoundError, NotReadyError, StorageUnavailableError, VersionNotFoundError
from server.names import Reference
from server.replica import Replica
from server.split import Split
from tests.server.fakes import FakeEngine, tiny_adapter

ONE, TWO, THREE = (tiny_adapter(seed) for seed in (1, 2, 3))


class Store:
    """The catalogue and the blobs as the registry writes them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "catalogue.sqlite"
        self.writer = Catalogue(sqlite_url(folder / "catalogue.sqlite"), is_writer=True)
        self.reader = Catalogue(sqlite_url(folder / "catalogue.sqlite"), is_writer=False)
        self.blobs = BlobStore(folder / "blobs")

    def add(self, name: str, adapter: Adapter, *, activate: bool = True) -> int:
        with self.blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        return self.writer.add_version(name, adapter.sha256, adapter.size_bytes, activate=activate).generation


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.writer.close()
    opened.reader.close()


@pytest.fixture
def reader(store: Store) -> Catalogue:
    return store.reader


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def replica(store: Store, engine: FakeEngine) -> AsyncIterator[Replica]:
    made = Replica(engine, store.reader, store.blobs, replica_id="r1", poll_interval_s=0.02)
    yield made
    await made.stop()


async def test_load_takes_all_that_was_committed(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("y", TWO)
    replica.load()
    assert (replica.generation, replica.names(), set(engine.adapters)) == (2, ("x", "y"), {ONE.sha256, TWO.sha256})


async def test_same_bytes_under_two_names_take_one_slot(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("y", ONE)
    replica.load()
    assert engine.added == [ONE.sha256]


async def test_bare_name_means_the_active_version(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("x", TWO)
    store.writer.activate("x", 1)
    replica.load()
    resolved = await replica.resolve(Reference("x"), None)
    assert (resolved.name, resolved.version, resolved.sha256) == ("x", 1, ONE.sha256)


async def test_pinned_version_is_served_whether_active_or_not(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("x", TWO)
    replica.load()
    assert (await replica.resolve(Reference("x", 1), None)).sha256 == ONE.sha256
    assert (await replica.resolve(Reference("x", 2), None)).sha256 == TWO.sha256


async def test_resolved_lease_is_counted_and_given_back(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    resolved = await replica.resolve(Reference("x"), None)
    assert engine.leased[ONE.sha256] == 1
    resolved.lease.release()
    assert engine.leased[ONE.sha256] == 0


async def test_unknown_name_is_looked_for_in_the_catalogue_once(store: Store, replica: Replica) -> None:
    replica.load()
    store.add("x", ONE)
    assert (await replica.resolve(Reference("x"), None)).version == 1


async def test_unknown_version_is_looked_for_in_the_catalogue_once(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    store.add("x", TWO)
    assert (await replica.resolve(Reference("x", 2), None)).version == 2


async def test_known_name_is_resolved_without_the_catalogue(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    store.path.rename(store.path.with_suffix(".gone"))
    store.reader.close()
    assert (await replica.resolve(Reference("x"), None)).version == 1


async def test_unknown_name_with_the_catalogue_away_is_not_called_unknown(store: Store, replica: Replica) -> None:
    replica.load()
    store.path.rename(store.path.with_suffix(".gone"))
    store.reader.close()
    with pytest.raises(StorageUnavailableError):
        await replica.resolve(Reference("x"), None)


async def test_unknown_name_raises_with_the_nearest_one(store: Store, replica: Replica) -> None:
    store.add("acme/spam", ONE)
    with pytest.raises(AdapterNotFoundError) as caught:
        await replica.resolve(Reference("acme/span"), None)
    assert caught.value.hint == "did you mean 'acme/spam'?"


async def test_unknown_name_in_an_empty_catalogue_says_how_to_register(replica: Replica) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        await replica.resolve(Reference("x"), None)
    assert "PUT" in str(caught.value.hint)


async def test_hint_among_ten_thousand_names_is_quick(
    store: Store, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.replica import _did_you_mean

    known = [f"tenant-{n:05d}" for n in range(10_000)]
    started_s = time.perf_counter()
    _did_you_mean("tenant-0x012", known)
    assert time.perf_counter() - started_s < 0.1


async def test_unknown_version_raises_and_names_those_kept(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    with pytest.raises(VersionNotFoundError) as caught:
        await replica.resolve(Reference("x", 9), None)
    assert "x@1" in str(caught.value.hint)


async def test_name_with_only_staged_versions_answers_pinned_alone(store: Store, replica: Replica) -> None:
    store.add("x", ONE, activate=False)
    assert (await replica.resolve(Reference("x", 1), None)).version == 1
    assert replica.names() == ()
    with pytest.raises(AdapterNotFoundError) as caught:
        await replica.resolve(Reference("x"), None)
    assert "x@1" in str(caught.value.hint)


async def test_min_generation_catches_up_first(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    generation = store.add("x", TWO)
    assert (await replica.resolve(Reference("x"), generation)).version == 2


async def test_min_generation_of_the_future_raises(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    with pytest.raises(NotReadyError):
        await replica.resolve(Reference("x"), 7)


async def test_apply_reports_generation_and_bytes_freed(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    generation = store.writer.delete_name("x").generation
    assert await replica.apply(generation) == ("r1", generation, ONE.size_bytes, 0)
    assert await replica.apply(generation) == ("r1", generation, ONE.size_bytes, 0)


async def test_apply_of_what_is_already_served_frees_nothing(store: Store, replica: Replica) -> None:
    generation = store.add("x", ONE)
    replica.load()
    assert await replica.apply(generation) == ("r1", generation, 0, 0)


async def test_apply_reports_a_lower_generation_if_the_change_cannot_be_loaded(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    store.add("x", ONE)
    engine.refuse[TWO.sha256] = BankFullError("full")
    generation = store.add("y", TWO)
    assert (await replica.apply(generation)).generation < generation
    later = store.add("z", THREE)
    assert (await replica.apply(later)).generation == later


async def test_sync_after_a_commit_sees_it_even_if_one_is_running(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        go_on.wait(5)

    engine.before_add = wait
    store.add("x", ONE)
    first = asyncio.create_task(replica.sync())
    await asyncio.to_thread(entered.wait, 5)
    generation = store.add("y", TWO)
    second = asyncio.create_task(replica.apply(generation))
    await asyncio.sleep(0.01)
    go_on.set()
    assert (await second).generation == generation
    await first


async def test_many_unknown_names_at_once_share_the_look_up(
    store: Store, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    real = store.reader.generation

    def counted() -> int:
        nonlocal reads
        reads += 1
        return real()

    monkeypatch.setattr(store.reader, "generation", counted)
    calls = (replica.resolve(Reference(f"n{n}"), None) for n in range(200))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, AdapterNotFoundError) for answer in answers)
    assert reads <= 3


async def test_replica_that_nobody_told_catches_up_by_polling(store: Store, replica: Replica) -> None:
    replica.load()
    await replica.start()
    store.add("x", ONE)
    async with asyncio.timeout(5):
        while replica.generation == 0:
            await asyncio.sleep(0.01)
    assert replica.names() == ("x",)


async def test_polling_survives_a_catalogue_that_cannot_be_read(
    store: Store, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    def broken() -> int:
        nonlocal failures
        failures += 1
        raise StorageUnavailableError("away")

    replica.load()
    with monkeypatch.context() as patch:
        patch.setattr(store.reader, "generation", broken)
        await replica.start()
        async with asyncio.timeout(5):
            while failures < 2:
                await asyncio.sleep(0.01)
    store.add("x", ONE)
    async with asyncio.timeout(5):
        while replica.generation == 0:
            await asyncio.sleep(0.01)


async def test_damaged_blob_blocks_only_its_own_adapter(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("y", TWO)
    store.blobs.delete(ONE.sha256)
    replica.load()
    assert (await replica.resolve(Reference("y"), None)).version == 1
    lease = (await replica.resolve(Reference("x"), None)).lease
    assert not lease.is_read
    [error] = await replica.read([lease])
    assert isinstance(error, NotReadyError)
    assert "cannot read a stored adapter" in error.message
    assert set(replica.status([]).broken) == {ONE.sha256}


async def test_damaged_blob_of_a_resident_adapter_changes_nothing(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    store.blobs.delete(ONE.sha256)
    generation = store.add("y", TWO)
    await replica.apply(generation)
    assert (await replica.resolve(Reference("x"), None)).version == 1
    assert replica.status([]).broken == {}


async def test_repaired_blob_is_loaded_by_a_later_sync(
    store: Store, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replica.BROKEN_RETRY_S", 0.0)
    store.add("x", ONE)
    store.blobs.delete(ONE.sha256)
    replica.load()
    store.add("x", ONE)
    await replica.sync()
    assert (await replica.resolve(Reference("x"), None)).version == 1


async def test_loader_that_raises_anything_blocks_only_its_adapter(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    engine.refuse[ONE.sha256] = MemoryError("with /a/path in it")
    store.add("x", ONE)
    store.add("y", TWO)
    replica.load()
    assert replica.status([]).broken == {ONE.sha256: "MemoryError"}
    assert (await replica.resolve(Reference("y"), None)).version == 1


async def test_prove_serves_nothing(store: Store, engine: FakeEngine, replica: Replica) -> None:
    with store.blobs.stage() as staged:
        staged.write(ONE.to_bytes())
        staged.keep()
    assert await replica.prove(ONE.sha256) == {"no_effect": False, "examples": 0}
    assert engine.adapters == {}


async def test_what_was_proved_here_is_read_once(
    store: Store, engine: FakeEngine, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = [], store.blobs.read
    monkeypatch.setattr(store.blobs, "read", lambda sha256: (reads.append(sha256), read(sha256))[1])
    for adapter in (ONE, TWO):
        with store.blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
    await replica.prove(ONE.sha256)
    generation = store.add("x", ONE)
    store.add("y", TWO)
    assert (await replica.apply(generation + 1)).generation == generation + 1
    assert set(engine.adapters) == {ONE.sha256, TWO.sha256}
    assert reads == [ONE.sha256, TWO.sha256]


async def test_what_was_proved_and_not_committed_is_given_up(
    store: Store, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replica.PROVED_BYTES", TWO.size_bytes + ONE.size_bytes - 1)
    for adapter in (ONE, TWO):
        with store.blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        await replica.prove(adapter.sha256)
    assert (replica._proved.take(ONE.sha256), replica._proved.take(TWO.sha256)) == (None, TWO)


async def test_restored_catalogue_is_followed_whole(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("kept", ONE)
    with dump.held_still(sqlite_url(store.path)) as lines:
        backup = list(lines)
    store.add("lost", TWO)
    replica.load()
    dump.replace(sqlite_url(store.path), backup)
    await replica.sync()
    assert replica.names() == ("kept",)
    assert set(engine.adapters) == {ONE.sha256}


async def test_prove_raises_what_the_engine_finds(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("x", ONE)
    engine.refuse[ONE.sha256] = BaseMismatchError("made for another backbone")
    with pytest.raises(BaseMismatchError):
        await replica.prove(ONE.sha256)


async def test_status_counts_calls_by_name(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    await replica.resolve(Reference("x"), None)
    await replica.resolve(Reference("x", 1), None)
    status = replica.status(["x", "unknown"])
    assert (status.uses["x"].requests, status.uses.keys(), status.adapter_bytes, status.replica_id) == (
        2,
        {"x"},
        ONE.size_bytes,
        "r1",
    )


async def test_replacing_under_load_never_leaves_a_name_without_version(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    """Each replacement removes the former version at once, so the look-up races with the removal all the time."""
    store.add("x", ONE)
    replica.load()
    stop = threading.Event()

    def replace() -> None:
        for step in range(60):
            generation = store.writer.add_version("x", (TWO, ONE)[step % 2].sha256, 1).generation
            former = 1 + step
            store.writer.delete_version("x", former)
            replica._sync()
            assert replica.generation >= generation
        stop.set()

    with store.blobs.stage() as staged:
        staged.write(TWO.to_bytes())
        staged.keep()
    replacing = asyncio.create_task(asyncio.to_thread(replace))
    seen = set()
    while not stop.is_set() and not replacing.done():
        for _ in range(50):
            resolved = await replica.resolve(Reference("x"), None)
            seen.add(resolved.version)
            resolved.lease.release()
        await asyncio.sleep(0.001)  # a loop that never rests would keep the interpreter lock from the writer
    await replacing
    assert len(seen) > 3


async def test_content_is_a_pin_of_the_newest_version_that_has_it(store: Store, replica: Replica) -> None:
    for adapter in (ONE, TWO):
        store.add("x", adapter)
    store.writer.delete_name("x")
    store.add("x", ONE)
    store.add("x", TWO)
    replica.load()
    resolved = await replica.resolve(Reference("x", sha256=ONE.sha256), None)
    assert (resolved.version, resolved.sha256) == (3, ONE.sha256)
    with pytest.raises(VersionNotFoundError):
        await replica.resolve(Reference("x", sha256=THREE.sha256), None)


async def test_split_sends_each_route_key_to_one_version_and_all_in_their_shares(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    store.add("x", ONE)
    store.add("x", TWO, activate=False)
    store.writer.split("x", Split({1: 70, 2: 30}))
    replica.load()
    versions = {}
    for key in range(300):
        for _ in range(2):
            resolved = await replica.resolve(Reference("x"), None, str(key))
            resolved.lease.release()
            assert versions.setdefault(key, resolved.version) == resolved.version
            assert resolved.sha256 == (ONE.sha256 if resolved.version == 1 else TWO.sha256)
    assert 0.6 < list(versions.values()).count(1) / 300 < 0.8
    assert sum(engine.leased.values()) == 0


async def test_pins_know_nothing_of_the_split(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("x", TWO, activate=False)
    store.writer.split("x", Split({2: 100}, shadow=1))
    replica.load()
    pinned = await replica.resolve(Reference("x", 1), None)
    assert (pinned.version, pinned.shadow) == (1, None)
    bare = await replica.resolve(Reference("x"), None)
    assert (bare.version, bare.shadow) == (2, 1)
    assert replica.shadows(["x", "unknown"]) == [("x", 1)]


async def test_activating_ends_the_split_on_the_replica(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("x", TWO, activate=False)
    store.writer.split("x", Split({2: 100}))
    replica.load()
    await replica.apply(store.writer.activate("x", 1).generation)
    assert (await replica.resolve(Reference("x"), None)).version == 1


async def test_call_under_way_keeps_its_version_when_another_is_activated(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    store.add("x", ONE)
    replica.load()
    resolved = await replica.resolve(Reference("x"), None)
    store.add("x", TWO)
    await replica.apply(store.writer.delete_version("x", 1).generation)
    assert engine.leased[resolved.lease.key] == 1
    assert resolved.lease.key == ONE.sha256


async def test_lease_for_a_shadow_is_not_counted_as_a_call(store: Store, engine: FakeEngine, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    replica.lease("x", 1).release()
    assert replica.status(["x"]).uses == {}
    assert engine.leased[ONE.sha256] == 0
    for name, version in (("x", 2), ("y", 1)):
        with pytest.raises(VersionNotFoundError):
            replica.lease(name, version)


async def test_replica_ahead_of_a_restored_catalogue_follows_it_back(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("gone", TWO)
    replica.load()
    with store.writer._database.write() as connection:
        connection.exec_driver_sql("UPDATE meta SET generation = 1")
        connection.exec_driver_sql("UPDATE adapters SET deleted = 1 WHERE name = 'gone'")
        connection.exec_driver_sql("UPDATE versions SET state = 'deleted' WHERE name = 'gone'")
    await replica.sync()
    assert (replica.generation, replica.names()) == (1, ("x",))


async def test_what_the_start_has_no_room_for_is_read_when_it_is_asked_for(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    engine.room = 1
    store.add("x", ONE)
    store.add("y", TWO)
    store.writer.note_uses({"y": 5})
    replica.load()
    assert engine.added == [TWO.sha256]
    cold = (await replica.resolve(Reference("x"), None)).lease
    assert not cold.is_read
    assert await replica.read([cold]) == [None]
    assert cold.is_read


async def test_a_start_reads_pinned_names_first_then_the_hottest(
    store: Store, engine: FakeEngine, reader: Catalogue
) -> None:
    adapters = {name: tiny_adapter(seed) for seed, name in enumerate("abcd", 10)}
    for name, adapter in adapters.items():
        store.add(name, adapter)
    store.writer.note_uses({"c": 3, "b": 9})
    replica = Replica(engine, reader, store.blobs, replica_id="r1", pinned=["d", "nobody"])
    replica.load()
    assert engine.added == [adapters[name].sha256 for name in "dbca"]
    assert engine.kept == [adapters["d"].sha256]


async def test_a_start_stops_reading_when_its_time_is_over(
    store: Store, engine: FakeEngine, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replica.PRELOAD_WITHIN_S", -1.0)
    store.add("x", ONE)
    store.add("y", TWO)
    replica.load()
    assert len(engine.added) == 1
    assert replica.names() == ("x", "y")


async def test_a_version_that_takes_over_a_pinned_name_is_the_one_that_is_kept(
    store: Store, engine: FakeEngine, reader: Catalogue
) -> None:
    replica = Replica(engine, reader, store.blobs, replica_id="r1", pinned=["x"])
    store.add("x", ONE)
    replica.load()
    await replica.apply(store.add("x", TWO))
    assert engine.kept == [TWO.sha256]


async def test_a_failed_read_is_not_tried_again_at_once(
    store: Store, engine: FakeEngine, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("x", ONE)
    store.blobs.delete(ONE.sha256)
    replica.load()
    lease = (await replica.resolve(Reference("x"), None)).lease
    reads: list[str] = []
    read = store.blobs.read
    monkeypatch.setattr(store.blobs, "read", lambda sha256: reads.append(sha256) or read(sha256))
    for _ in range(5):
        [error] = await replica.read([lease])
        assert isinstance(error, NotReadyError)
    assert reads == []
    store.add("x", ONE)
    monkeypatch.setattr("server.replica.time.monotonic", lambda: 1e12)
    assert await replica.read([lease]) == [None]
    assert reads == [ONE.sha256]
    assert replica.status([]).broken == {}


async def test_uses_are_told_once(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    replica.load()
    for _ in range(3):
        (await replica.resolve(Reference("x"), None)).lease.release()
    assert replica.take_uses() == {"x": 3}
    assert replica.take_uses() == {}
    assert replica.status(["x"]).uses["x"].requests == 3


async def test_status_says_the_tier_of_every_version(store: Store, engine: FakeEngine, replica: Replica) -> None:
    engine.room = 1
    store.add("x", ONE)
    store.add("x", TWO)
    replica.load()
    assert replica.status(["x"]).tiers == {TWO.sha256: "device", ONE.sha256: "store"}


async def test_describe_tells_what_a_reference_means_and_counts_nothing(
    store: Store, engine: FakeEngine, replica: Replica
) -> None:
    store.add("x", ONE)
    store.add("x", TWO)
    found = await replica.describe(Reference("x"))
    assert (found.name, found.version, found.sha256, found.kept) == ("x", 2, TWO.sha256, (1, 2))
    assert found.config == TWO.config
    assert (await replica.describe(Reference("x", 1))).identity == {"adapter": "x", "version": 1, "sha256": ONE.sha256}
    assert engine.leased.total() == 0
    assert replica.status(["x"]).uses == {}


async def test_describe_of_a_name_under_a_split_says_the_same_each_time(store: Store, replica: Replica) -> None:
    store.add("x", ONE)
    store.add("x", TWO)
    store.writer.split("x", Split({1: 50, 2: 50}))
    replica.load()
    assert len({(await replica.describe(Reference("x"))).version for _ in range(30)}) == 1


async def test_describe_of_the_unknown_raises(store: Store, replica: Replica) -> None:
    with pytest.raises(AdapterNotFoundError):
        await replica.describe(Reference("x"))


async def test_table_and_faults_are_those_that_serve(store: Store, engine: FakeEngine, replica: Replica) -> None:
    engine.refuse[TWO.sha256] = BankFullError("no memory left")
    store.add("x", ONE)
    store.add("y", TWO)
    replica.load()
    assert list(replica.table.adapters) == ["x", "y"]
    assert replica.broken == {TWO.sha256: "no memory left"}
