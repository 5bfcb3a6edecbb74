"""The registry: a refusal leaves nothing, an acknowledged change is everywhere, races end well, whoever hangs up."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adakron import Adapter
from adakron.errors import BankFullError, NonFiniteError
from server.errors import (
    BodyTooLargeError,
    ConflictError,
    NotReadyError,
    PreconditionFailedError,
    StorageUnavailableError,
)
from server.names import Reference
from server.registry import Put
from tests.server.fakes import House, tiny_adapter, with_broken_tensor

ONE, TWO = tiny_adapter(1), tiny_adapter(2)


async def chunks(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


async def put(house: House, name: str, adapter: Adapter, **options: object) -> Put:
    return await house.registry.put(name, chunks(adapter.to_bytes()), **options)  # type: ignore[arg-type]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


async def test_put_is_served_by_every_replica_when_it_returns(house: House) -> None:
    result = await put(house, "x", ONE)
    assert (result.change.version, result.change.is_new, result.lagging, result.no_effect) == (1, True, (), False)
    assert all(engine.adapters.keys() == {ONE.sha256} for engine in house.engines)
    assert house.files() == [ONE.sha256]


async def test_same_bytes_under_another_name_share_the_blob(house: House) -> None:
    await put(house, "x", ONE)
    await put(house, "y", ONE)
    assert house.files() == [ONE.sha256]
    first = await house.registry.delete("x")
    assert (first.freed.disk_bytes, house.files()) == (0, [ONE.sha256])
    second = await house.registry.delete("y")
    assert (second.freed.disk_bytes, house.files()) == (ONE.size_bytes, [])


async def test_refused_bytes_leave_nothing(house: House) -> None:
    with pytest.raises(NonFiniteError):
        await house.registry.put("x", chunks(with_broken_tensor(ONE)))
    assert (house.files(), house.catalogue.generation()) == ([], 0)


async def test_refused_proof_leaves_nothing(house: House) -> None:
    house.engines[0].refuse[ONE.sha256] = BankFullError("full")
    with pytest.raises(BankFullError):
        await put(house, "x", ONE)
    assert (house.files(), house.catalogue.generation()) == ([], 0)


async def test_refused_proof_leaves_the_blob_another_name_uses(house: House) -> None:
    await put(house, "x", ONE)
    house.engines[0].refuse[ONE.sha256] = BankFullError("full")
    with pytest.raises(BankFullError):
        await put(house, "y", ONE)
    assert house.blobs.read(ONE.sha256) == ONE.to_bytes()


async def test_failed_precondition_leaves_nothing(house: House) -> None:
    with pytest.raises(PreconditionFailedError):
        await put(house, "x", ONE, if_match=frozenset({4}))
    assert house.files() == []


async def test_upload_that_breaks_off_leaves_nothing(house: House) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield ONE.to_bytes()[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await house.registry.put("x", breaks_off())
    assert house.files() == []


async def test_upload_over_the_cap_leaves_nothing(house: House) -> None:
    house.blobs._max_bytes = 1000
    with pytest.raises(BodyTooLargeError):
        await put(house, "x", ONE)
    assert house.files() == []


async def test_replica_that_does_not_prove_in_time_is_not_ready(house: House) -> None:
    house.registry._answer_within_s = 0.02
    house.replicas.before_prove = lambda: asyncio.sleep(60)
    with pytest.raises(NotReadyError):
        await put(house, "x", ONE)
    assert house.files() == []


async def test_replica_that_does_not_follow_is_named(house: House) -> None:
    house.replicas.deaf = {"r2"}
    assert (await put(house, "x", ONE)).lagging == ("r2",)
    assert (await house.registry.activate("x", 1)).lagging == ("r2",)
    assert (await house.registry.delete("x")).lagging == ("r2",)


async def test_replica_that_cannot_load_what_another_proved_is_named(house: House) -> None:
    house.engines[1].refuse[ONE.sha256] = BankFullError("full")
    assert (await put(house, "x", ONE)).lagging == ("r2",)


async def test_broadcast_without_answer_in_time_is_lagging(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(generation: int) -> list[object]:
        await asyncio.sleep(60)
        return []

    house.registry._answer_within_s = 0.5
    monkeypatch.setattr(house.replicas, "broadcast", never)
    assert (await put(house, "x", ONE)).lagging == ("unknown",)
    assert house.catalogue.snapshot().adapters["x"].active == 1


async def test_change_that_reaches_nobody_is_lagging(house: House) -> None:
    await put(house, "x", ONE)
    await put(house, "x", TWO)
    house.replicas.replicas = []
    assert (await house.registry.activate("x", 1)).lagging == ("unknown",)


async def test_client_that_leaves_during_the_proof_changes_nothing_about_the_outcome(house: House) -> None:
    proving, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        proving.set()
        await go_on.wait()

    house.replicas.before_prove = wait
    request = asyncio.create_task(put(house, "x", ONE))
    await proving.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    go_on.set()
    async with asyncio.timeout(5):
        while house.replicas.replicas[1].generation == 0:
            await asyncio.sleep(0.01)
    assert house.blobs.read(ONE.sha256) == ONE.to_bytes()
    assert house.engines[1].adapters.keys() == {ONE.sha256}


async def test_delete_while_the_same_bytes_are_put_elsewhere_keeps_the_blob(house: House) -> None:
    await put(house, "x", ONE)
    proving, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        proving.set()
        await go_on.wait()

    house.replicas.before_prove = wait
    upload = asyncio.create_task(put(house, "y", ONE))
    await proving.wait()
    assert (await house.registry.delete("x")).freed == (0, 0)
    go_on.set()
    await upload
    assert house.blobs.read(ONE.sha256) == ONE.to_bytes()


async def test_concurrent_puts_of_one_name_are_one_after_another(house: House) -> None:
    adapters = [tiny_adapter(seed) for seed in range(10, 16)]
    results = await asyncio.gather(*(put(house, "x", adapter) for adapter in adapters))
    assert sorted(result.change.version for result in results) == [1, 2, 3, 4, 5, 6]
    last = max(results, key=lambda result: result.change.generation)
    for replica in house.replicas.replicas:
        assert (await replica.resolve(Reference("x"), None)).sha256 == last.change.sha256


async def test_put_and_delete_of_many_names_leave_no_trace(house: House) -> None:
    async def cycle(index: int) -> None:
        for _ in range(3):
            await put(house, f"n{index}", (ONE, TWO)[index % 2])
            await house.registry.delete(f"n{index}")

    await asyncio.gather(*(cycle(index) for index in range(6)))
    assert house.files() == []
    assert all(engine.adapters == {} for engine in house.engines)
    assert not house.registry._pinned
    assert not house.registry._running


async def test_delete_reports_what_was_freed_on_all_replicas(house: House) -> None:
    await put(house, "x", ONE)
    await put(house, "x", TWO)
    deleted = await house.registry.delete("x", 1)
    assert (deleted.versions, deleted.device_bytes, deleted.freed.disk_bytes) == (
        (1,),
        2 * ONE.size_bytes,
        ONE.size_bytes,
    )


async def test_delete_of_the_active_version_alone_raises(house: House) -> None:
    await put(house, "x", ONE)
    with pytest.raises(ConflictError):
        await house.registry.delete("x", 1)
    assert house.files() == [ONE.sha256]


async def test_pages_cover_all_names_once_in_order(house: House) -> None:
    for name in ("b", "a", "c/d"):
        await put(house, name, ONE)
    first, following = await house.registry.page(2)
    assert ([adapter.name for adapter in first], following) == (["a", "b"], "b")
    rest, end = await house.registry.page(2, "b")
    assert ([adapter.name for adapter in rest], end) == (["c/d"], None)


async def test_listing_says_where_a_version_is_resident(house: House) -> None:
    await put(house, "x", ONE)
    house.engines[1].refuse[TWO.sha256] = BankFullError("full")
    await put(house, "x", TWO)
    assert (await house.registry.get("x")).resident == {1: ("r1", "r2"), 2: ("r1",)}


async def test_listing_goes_on_without_an_answer_of_the_replicas(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(names: object) -> list[object]:
        await asyncio.sleep(60)
        return []

    await put(house, "x", ONE)
    monkeypatch.setattr("server.registry.DESCRIBE_WITHIN_S", 0.02)
    monkeypatch.setattr(house.replicas, "describe", never)
    assert (await house.registry.get("x")).resident == {1: ()}


async def test_listing_shows_an_adapter_whose_blob_is_damaged(house: House) -> None:
    await put(house, "x", ONE)
    house.blobs.delete(ONE.sha256)
    assert (await house.registry.get("x")).config == ONE.config


async def test_tidying_spares_uploads_and_what_versions_need(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(house, "x", ONE)
    with house.blobs.stage() as staged:
        staged.write(b"left by a server that was killed")
        orphan = staged.keep()
    monkeypatch.setattr("server.registry.TIDY_EVERY_S", 0.01)
    tidying = asyncio.create_task(house.registry.keep_tidy())
    await asyncio.sleep(0.1)
    assert house.files() == sorted([ONE.sha256, orphan])
    os.utime(house.blobs._path(orphan), (0, 0))
    async with asyncio.timeout(5):
        while orphan in house.files():
            await asyncio.sleep(0.01)
    tidying.cancel()
    assert house.files() == [ONE.sha256]


async def test_tidying_goes_on_after_a_failure(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def broken() -> int:
        nonlocal calls
        calls += 1
        raise StorageUnavailableError("away")

    monkeypatch.setattr("server.registry.TIDY_EVERY_S", 0.001)
    monkeypatch.setattr(house.catalogue, "forget_requests", broken)
    tidying = asyncio.create_task(house.registry.keep_tidy())
    async with asyncio.timeout(5):
        while calls < 3:
            await asyncio.sleep(0.01)
    tidying.cancel()


async def test_uses_are_written_down_for_the_next_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.registry.NOTE_USES_EVERY_S", 0.01)
    for name in ("x", "y"):
        house.catalogue.add_version(name, "a" * 64, 1)
    told = [{"y": 2}, {"y": 1, "x": 1}]

    async def take_uses() -> list[dict[str, int]]:
        return [told.pop()] if told else []

    monkeypatch.setattr(house.replicas, "take_uses", take_uses)
    task = asyncio.create_task(house.registry.note_uses())
    async with asyncio.timeout(5):
        while house.catalogue.hottest() != ["y", "x"]:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
