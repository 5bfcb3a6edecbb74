"""Rows whose adapters are not on the device: loaded beside the queue, and nobody else waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from adakron import Result
from server.batcher import (
    LOAD_PATIENCE_BATCHES,
    LOADERS,
)
from server.errors import (
    DeadlineExceededError,
    EngineFailedError,
    NotReadyError,
    StorageUnavailableError,
)
from server.submission import Outcome
from tests.server.batcher_bench import LIMITS, Bench, running, sample, until
from tests.server.stub_engine import config_of


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running(Bench()) as bench:
        yield bench


async def test_a_miss_is_loaded_and_answered(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    outcomes = await bench.outcomes(("a", "one"), ("a", "two"), ("b", "three"))
    assert all(isinstance(outcome, Result) for outcome in outcomes)
    assert bench.engine.fetched == ["a"]
    assert sample(bench.metrics, "adakron_load_seconds_count") == 1


async def test_a_miss_holds_up_no_hit(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.load_gate.clear()
    miss = asyncio.create_task(bench.outcomes(("a", "waits"), ("b", "of the same call")))
    await until(bench.engine.loading.is_set)
    for n in range(5):
        assert isinstance((await bench.outcomes(("b", f"hit {n}")))[0], Result)
    assert not miss.done()
    bench.engine.load_gate.set()
    assert all(isinstance(outcome, Result) for outcome in await miss)


async def test_rows_that_come_during_a_load_wait_for_the_same_one(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.load_gate.clear()
    calls = [asyncio.create_task(bench.outcomes(("a", f"text {n}"))) for n in range(8)]
    await until(lambda: sample(bench.metrics, "adakron_queue_tokens") == 8 * 4)
    bench.engine.load_gate.set()
    await asyncio.gather(*calls)
    assert bench.engine.fetched == ["a"]


async def test_several_misses_are_loaded_side_by_side(bench: Bench) -> None:
    bench.engine.cold = {"a", "b"}
    bench.engine.unloadable["b"] = ValueError("secret")
    outcomes = await bench.outcomes(("a", "one"), ("b", "two"), ("c", "three"))
    assert isinstance(outcomes[0], Result)
    assert isinstance(outcomes[2], Result)
    assert isinstance(outcomes[1], NotReadyError)
    assert "secret" not in outcomes[1].message
    assert sorted(bench.engine.fetched) == ["a", "b"]


async def test_an_adapter_that_could_not_be_loaded_is_tried_again_by_the_next_row(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.unloadable["a"] = StorageUnavailableError("the store does not answer")
    assert isinstance((await bench.outcomes(("a", "one")))[0], StorageUnavailableError)
    del bench.engine.unloadable["a"]
    assert isinstance((await bench.outcomes(("a", "one")))[0], Result)


async def test_a_call_given_up_during_its_load_gives_lease_and_pin_back(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.load_gate.clear()
    task = asyncio.create_task(bench.outcomes(("a", "given up")))
    await until(bench.engine.loading.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert bench.engine.n_held == 1  # the loader still works with it
    bench.engine.load_gate.set()
    await until(lambda: bench.engine.n_held == 0 and bench.engine.n_pinned == 0)
    assert bench.engine.batches == []


async def test_another_row_goes_on_where_the_one_that_asked_for_the_load_was_given_up(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.load_gate.clear()
    first = asyncio.create_task(bench.outcomes(("a", "given up")))
    await until(bench.engine.loading.is_set)
    second = asyncio.create_task(bench.outcomes(("a", "goes on")))
    await until(lambda: sample(bench.metrics, "adakron_queue_rows") == 2)
    await until(lambda: sample(bench.metrics, "adakron_queue_tokens") == 8)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    bench.engine.load_gate.set()
    assert isinstance((await second)[0], Result)
    assert bench.texts_run() == [["goes on"]]


async def test_a_row_whose_deadline_passes_before_its_load_begins_is_not_loaded(bench: Bench) -> None:
    for n in range(LOADERS + 1):
        bench.engine.add(f"cold{n}", config_of())
    bench.engine.cold = {f"cold{n}" for n in range(LOADERS + 1)}
    bench.engine.load_gate.clear()
    busy = [asyncio.create_task(bench.outcomes((f"cold{n}", "x"))) for n in range(LOADERS)]
    await until(lambda: sample(bench.metrics, "adakron_queue_tokens") == 3 * LOADERS)
    late = asyncio.create_task(bench.outcomes((f"cold{LOADERS}", "late"), timeout_s=0.05))
    await asyncio.sleep(0.1)
    bench.engine.load_gate.set()
    await asyncio.gather(*busy)
    with pytest.raises(DeadlineExceededError):
        await late
    assert f"cold{LOADERS}" not in bench.engine.fetched


async def test_a_pinned_row_that_is_dropped_gives_its_pin_back(bench: Bench) -> None:
    await bench.hold()
    task = await bench.task(("a", "dropped"))
    assert bench.engine.pins["a"] == 1
    task.cancel()
    bench.engine.gate.set()
    await until(lambda: bench.engine.n_pinned == 0)


async def test_the_death_of_a_loader_leaves_no_row_without_an_answer(bench: Bench) -> None:
    bench.engine.cold = {"a"}
    bench.engine.unloadable["a"] = SystemExit("planted death")
    try:
        first, _ = await bench.outcomes(("a", "one"), ("b", "two"))
    except EngineFailedError as error:  # the other row had not run yet: the call failed whole
        first = error
    assert isinstance(first, EngineFailedError)
    await until(lambda: not bench.batcher.is_running)


async def test_stopping_resolves_rows_that_wait_for_a_load() -> None:
    bench = Bench()
    bench.batcher.start()
    bench.engine.cold = {"a"}
    bench.engine.load_gate.clear()
    calls = [asyncio.create_task(bench.outcomes(("a", f"text {n}"))) for n in range(3)]
    await until(bench.engine.loading.is_set)
    stopping = asyncio.create_task(bench.batcher.stop(grace_s=0.05))
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, NotReadyError)
    bench.engine.load_gate.set()
    await stopping
    await until(lambda: bench.engine.n_pinned == 0 and bench.engine.n_held == 0)


async def test_on_a_crowded_device_a_miss_waits_for_more_of_its_rows_while_there_is_other_work(bench: Bench) -> None:
    bench.engine.is_crowded = True
    bench.engine.cold = {"a"}
    await bench.hold()
    full = LIMITS.budget_tokens // 10
    hits = [await bench.task(("b", "one two three four five six seven eight")) for _ in range(full)]
    misses = [await bench.task(("a", f"miss {n}")) for n in range(3)]
    await asyncio.sleep(0.05)
    assert bench.engine.fetched == []
    bench.engine.gate.set()
    await asyncio.gather(*hits, *misses)
    assert bench.engine.fetched == ["a"]


async def test_a_miss_on_a_crowded_device_is_loaded_after_eight_batches_at_the_latest(bench: Bench) -> None:
    bench.engine.is_crowded = True
    bench.engine.cold = {"a"}
    await bench.hold()
    miss = await bench.task(("a", "miss"))
    queued = 0

    def more_hits() -> list["asyncio.Task[Sequence[Outcome]]"]:
        text = " ".join(["word"] * 48)
        return [asyncio.create_task(bench.outcomes(("b", text), ("b", text))) for _ in range(2)]

    hits = more_hits()
    bench.engine.gate.set()
    while not miss.done():
        hits += more_hits()
        queued += 1
        assert queued < 500
        await asyncio.sleep(0.002)
    await asyncio.gather(*hits)
    before = next(n for n, batch in enumerate(bench.engine.batches) if any(row.text == "miss" for row in batch))
    assert before <= LOAD_PATIENCE_BATCHES + 4  # and those that ran while it was being loaded
