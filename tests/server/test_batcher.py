import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from adakron import Result, RowError
from server.batcher import (
    MAX_ENCODE_CHARACTERS,
    Limits,
)
from server.errors import (
    DeadlineExceededError,
    EngineFailedError,
    NotReadyError,
    OverloadedError,
)
from tests.server.batcher_bench import Bench, running, sample, until


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running(Bench()) as bench:
        yield bench


# ---- results -------------------------------------------------------------------------------------------------------


async def test_rows_come_back_in_order(bench: Bench) -> None:
    outcomes = await bench.outcomes(("a", "one"), ("b", "two words"), ("a", "three words here"))
    assert [outcome.adapter for outcome in outcomes if isinstance(outcome, Result)] == ["a", "b", "a"]
    assert [outcome.n_tokens for outcome in outcomes if isinstance(outcome, Result)] == [3, 4, 5]


async def test_a_row_alone_is_the_row_in_a_crowd(bench: Bench) -> None:
    alone = await bench.outcomes(("a", "the same text"))
    crowd = await asyncio.gather(*[bench.outcomes(("a", "the same text"), ("b", f"text {n}")) for n in range(20)])
    assert isinstance(alone[0], Result)
    for outcomes in crowd:
        assert isinstance(outcomes[0], Result)
        assert (outcomes[0].logits == alone[0].logits).all()


async def test_a_bad_text_is_an_error_in_its_place_and_never_runs(bench: Bench) -> None:
    outcomes = await bench.outcomes(("a", "good"), ("a", " "), ("b", "good too"))
    assert isinstance(outcomes[1], RowError)
    assert isinstance(outcomes[0], Result)
    assert isinstance(outcomes[2], Result)
    assert bench.texts_run() == [["good", "good too"]]


async def test_a_call_of_bad_texts_alone_is_answered_without_the_engine(bench: Bench) -> None:
    outcomes = await bench.outcomes(("a", " "), ("b", ""))
    assert all(isinstance(outcome, RowError) for outcome in outcomes)
    assert bench.engine.batches == []


# ---- batches -------------------------------------------------------------------------------------------------------


async def test_all_that_has_arrived_is_encoded_in_one_call(bench: Bench) -> None:
    bench.engine.encode_gate.clear()
    first = asyncio.create_task(bench.outcomes(("a", "first")))
    await until(bench.engine.encoding.is_set)
    rest = [asyncio.create_task(bench.outcomes(("a", f"row {n}"), ("b", f"row {n}"))) for n in range(5)]
    await asyncio.sleep(0)
    bench.engine.encode_gate.set()
    await asyncio.gather(first, *rest)
    assert bench.engine.encode_calls == [1, 10]


async def test_what_waited_while_the_engine_ran_is_one_batch_of_many_adapters(bench: Bench) -> None:
    held = await bench.hold()
    tasks = [await bench.task((key, f"text {n}")) for n in range(3) for key in ("a", "b", "c")]
    bench.engine.gate.set()
    await asyncio.gather(held, *tasks)
    assert [len(batch) for batch in bench.engine.batches] == [1, 9]


async def test_no_batch_is_over_its_budget(bench: Bench) -> None:
    held = await bench.hold()
    text = " ".join(["word"] * 28)  # 30 tokens
    tasks = [await bench.task(("a", text), ("b", text)) for _ in range(5)]
    bench.engine.gate.set()
    await asyncio.gather(held, *tasks)
    assert [sum(row.n_tokens for row in batch) for batch in bench.engine.batches] == [3, 90, 90, 90, 30]


async def test_a_single_row_does_not_wait_for_company(bench: Bench) -> None:
    waits_s = []
    for _ in range(20):
        call = bench.submit(("a", "alone"))
        await call.outcomes()
        waits_s.append(sum(call.submission.stages()))
    assert min(waits_s) < 0.005


async def test_a_hot_adapter_delays_anothers_row_by_one_batch_at_most() -> None:
    bench = Bench(Limits(budget_tokens=40, queue_limit_tokens=10_000, queue_limit_rows=2000))
    bench.batcher.start()
    held = await bench.hold()
    hot = [await bench.task(*[("a", "hot text")] * 100) for _ in range(10)]
    cold = await bench.task(("b", "cold"))
    bench.engine.gate.set()
    await asyncio.gather(held, cold, *hot)
    await bench.batcher.stop(grace_s=1)
    assert "cold" in bench.texts_run()[1]


# ---- admission -----------------------------------------------------------------------------------------------------


async def test_rows_beyond_the_limit_are_refused_whole_before_they_are_queued(bench: Bench) -> None:
    held = await bench.hold()
    waiting = await bench.task(*[("a", "x")] * 45)
    with pytest.raises(OverloadedError, match="45 rows are waiting"):
        bench.submit(*[("b", "x")] * 6)
    accepted = await bench.task(*[("b", "x")] * 5)
    bench.engine.gate.set()
    await asyncio.gather(held, waiting, accepted)
    assert sum(len(batch) for batch in bench.engine.batches) == 1 + 45 + 5
    assert sample(bench.metrics, "adakron_refused_total", code="OVERLOADED") == 1


async def test_tokens_beyond_the_limit_are_refused_whole(bench: Bench) -> None:
    held = await bench.hold()
    text = " ".join(["word"] * 98)  # 100 tokens
    waiting = await bench.task(*[("a", text)] * 9)
    with pytest.raises(OverloadedError, match="900 tokens are waiting"):
        await bench.outcomes(("b", text), ("b", "x"))
    accepted = await bench.task(("b", text))
    with pytest.raises(OverloadedError, match="1000 tokens are waiting"):
        bench.submit(("b", "x"))
    bench.engine.gate.set()
    await asyncio.gather(held, waiting, accepted)
    assert sum(len(batch) for batch in bench.engine.batches) == 1 + 9 + 1


async def test_a_call_larger_than_the_limits_runs_when_nothing_waits(bench: Bench) -> None:
    outcomes = await bench.outcomes(*[("a", " ".join(["word"] * 98))] * 60)
    assert all(isinstance(outcome, Result) for outcome in outcomes)


async def test_a_refused_call_leaves_room_as_it_was(bench: Bench) -> None:
    held = await bench.hold()
    waiting = await bench.task(*[("a", "x")] * 50)
    for _ in range(20):
        with pytest.raises(OverloadedError):
            bench.submit(("b", "x"))
    bench.engine.gate.set()
    await asyncio.gather(held, waiting)
    await bench.outcomes(*[("a", "x")] * 50)


async def test_nothing_is_taken_before_start() -> None:
    with pytest.raises(NotReadyError):
        Bench().submit(("a", "x"))


# ---- deadlines and clients that leave ------------------------------------------------------------------------------


async def test_a_row_past_its_deadline_is_dropped_from_the_queue_and_not_run(bench: Bench) -> None:
    held = await bench.hold()
    late = await bench.task(("a", "late"), timeout_s=0.02)
    await asyncio.sleep(0.03)
    bench.engine.gate.set()
    with pytest.raises(DeadlineExceededError):
        await late
    await held
    assert bench.texts_run() == [["holding"]]
    assert sample(bench.metrics, "adakron_cancelled_rows_total") == 1


async def test_a_call_past_its_deadline_is_not_even_tokenised(bench: Bench) -> None:
    with pytest.raises(DeadlineExceededError):
        await bench.outcomes(("a", "late"), timeout_s=0)
    assert bench.engine.encode_calls == []


async def test_rows_of_a_client_that_left_are_dropped_from_the_queue_and_not_run(bench: Bench) -> None:
    held = await bench.hold()
    gone = await bench.task(("a", "gone"), ("b", "gone"))
    stays = await bench.task(("a", "stays"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    bench.engine.gate.set()
    await asyncio.gather(held, stays)
    assert bench.texts_run() == [["holding"], ["stays"]]


async def test_leases_of_a_client_that_left_are_back_at_once_where_no_thread_has_its_rows(bench: Bench) -> None:
    held = await bench.hold()
    gone = await bench.task(("a", "gone"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert bench.engine.held["a"] == 0
    bench.engine.gate.set()
    await held


async def test_leases_of_a_client_that_left_stay_out_while_the_engine_runs_its_rows(bench: Bench) -> None:
    held = await bench.hold()
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    assert bench.engine.held["c"] == 1
    bench.engine.gate.set()
    await until(lambda: bench.engine.held["c"] == 0)


async def test_leases_of_a_client_that_left_stay_out_while_its_rows_are_tokenised(bench: Bench) -> None:
    bench.engine.encode_gate.clear()
    gone = asyncio.create_task(bench.outcomes(("a", "gone")))
    await until(bench.engine.encoding.is_set)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert bench.engine.held["a"] == 1
    bench.engine.encode_gate.set()
    await until(lambda: bench.engine.held["a"] == 0)
    assert bench.engine.batches == []


async def test_rows_of_clients_that_left_make_room_for_others(bench: Bench) -> None:
    held = await bench.hold()
    gone = await bench.task(*[("a", "gone")] * 50)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    stays = await bench.task(*[("a", "stays")] * 50)
    bench.engine.gate.set()
    await asyncio.gather(held, stays)


async def test_two_thousand_calls_cancelled_at_any_moment_leave_nothing_behind(bench: Bench) -> None:
    tasks = []
    for number in range(2000):
        try:
            call = bench.submit(("abc"[number % 3], f"text {number}"))
        except OverloadedError:
            await asyncio.sleep(0.001)
            continue
        task = asyncio.create_task(call.outcomes())
        tasks.append(task)
        if number % 3:
            await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, list | asyncio.CancelledError) for result in results)
    await until(lambda: bench.engine.n_held == 0)


# ---- faults --------------------------------------------------------------------------------------------------------


async def test_an_adapter_that_makes_the_engine_raise_fails_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.failing = {"b"}
    held = await bench.hold()
    tasks = [await bench.task(("a", "good"), ("b", "bad"), ("c", "good")), await bench.task(("b", "bad"))]
    bench.engine.gate.set()
    mixed, bad, _ = await asyncio.gather(*tasks, held)
    assert [type(outcome) for outcome in mixed] == [Result, EngineFailedError, Result]
    assert [type(outcome) for outcome in bad] == [EngineFailedError]
    assert "planted fault in run" in caplog.text


async def test_the_batcher_goes_on_after_the_engine_raised(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.failing = {"a"}
    for _ in range(5):
        assert isinstance((await bench.outcomes(("a", "bad")))[0], EngineFailedError)
    assert isinstance((await bench.outcomes(("b", "good")))[0], Result)
    assert bench.batcher.is_running


async def test_too_few_results_are_an_engine_failure(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.short_results = 1
    outcomes = await bench.outcomes(("a", "x"), ("a", "y"))
    assert [type(outcome) for outcome in outcomes] == [EngineFailedError, EngineFailedError]
    assert "the engine returned 1 results for 2 rows" in caplog.text


async def test_too_few_encoded_rows_are_an_engine_failure(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.short_encoded = 1
    with pytest.raises(EngineFailedError):
        await bench.outcomes(("a", "x"), ("a", "y"))
    assert "the engine returned 1 encoded rows for 2 rows" in caplog.text


async def test_a_call_that_makes_the_tokenizer_raise_fails_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.failing_texts = {"bad"}
    bench.engine.encode_gate.clear()
    first = asyncio.create_task(bench.outcomes(("a", "first")))
    await until(bench.engine.encoding.is_set)
    tasks = [asyncio.create_task(bench.outcomes(("a", text))) for text in ("good", "bad", "good too")]
    await asyncio.sleep(0)
    bench.engine.encode_gate.set()
    results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [type(result) for result in results] == [list, list, EngineFailedError, list]


async def test_a_numeric_failure_is_an_error_in_its_place(bench: Bench) -> None:
    bench.engine.numeric = {"b"}
    outcomes = await bench.outcomes(("a", "x"), ("b", "x"))
    assert isinstance(outcomes[0], Result)
    assert isinstance(outcomes[1], RowError)
    assert outcomes[1].code == "ADAPTER_NUMERIC_ERROR"


async def test_death_of_the_worker_thread_fails_every_call_and_ends_service(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.batcher.start()
    bench.engine.deadly = {"c"}
    running = await bench.hold()
    waiting = [await bench.task(("a", "waiting")) for _ in range(3)]
    bench.engine.gate.set()
    results = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(result) for result in results] == [EngineFailedError] * 4
    assert not bench.batcher.is_running
    assert bench.engine.n_held == 0
    with pytest.raises(EngineFailedError):
        bench.submit(("a", "x"))
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    await bench.batcher.stop(grace_s=1)


async def test_death_of_the_tokenizer_thread_fails_every_call_and_ends_service(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()

    def die(rows: object, leases: object) -> None:
        raise SystemExit("planted death")

    monkeypatch.setattr(bench.engine, "encode", die)
    bench.batcher.start()
    with pytest.raises(EngineFailedError):
        await bench.outcomes(("a", "x"))
    assert not bench.batcher.is_running
    assert bench.engine.n_held == 0
    await bench.batcher.stop(grace_s=1)


async def test_an_error_nobody_asks_for_any_more_is_not_complained_of(bench: Bench) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
    held = await bench.hold()
    call = bench.submit(("a", "late"), timeout_s=0.01)
    await asyncio.sleep(0.02)
    bench.engine.gate.set()
    await held
    await until(lambda: sample(bench.metrics, "adakron_queue_rows") == 0)
    call.submission.when_idle(call.release)
    del call
    await bench.outcomes(("b", "the threads turn to something else"))
    await bench.outcomes(("b", "and to something else again"))
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


# ---- shutdown ------------------------------------------------------------------------------------------------------


async def test_stop_lets_what_is_inside_finish() -> None:
    bench = Bench()
    bench.batcher.start()
    held = await bench.hold()
    waiting = await bench.task(("a", "waiting"))
    stopping = asyncio.create_task(bench.batcher.stop(grace_s=2))
    await asyncio.sleep(0.01)
    with pytest.raises(NotReadyError):
        bench.submit(("a", "too late"))
    bench.engine.gate.set()
    await stopping
    assert isinstance((await held)[0], Result)
    assert isinstance((await waiting)[0], Result)


async def test_stop_fails_what_waits_when_the_grace_is_over(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.batcher.start()
    held = await bench.hold()
    waiting = await bench.task(("a", "waiting"))
    stopping = asyncio.create_task(bench.batcher.stop(grace_s=0.02))
    results = await asyncio.gather(held, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [NotReadyError, NotReadyError]
    assert bench.engine.held == {"a": 0, "c": 1}  # the engine still runs that one row
    bench.engine.gate.set()
    await stopping
    await until(lambda: bench.engine.n_held == 0)


async def test_stop_without_calls_is_immediate() -> None:
    bench = Bench()
    bench.batcher.start()
    started_s = time.perf_counter()
    await bench.batcher.stop(grace_s=5)
    assert time.perf_counter() - started_s < 1
    assert not bench.batcher.is_running


# ---- what is counted -----------------------------------------------------------------------------------------------


async def test_rows_tokens_and_adapters_of_batches_are_counted(bench: Bench) -> None:
    await bench.outcomes(("a", "one"), ("b", "two words"))
    assert sample(bench.metrics, "adakron_rows_total") == 2
    assert sample(bench.metrics, "adakron_tokens_total") == 7
    assert sample(bench.metrics, "adakron_batch_rows_sum") == 2
    assert sample(bench.metrics, "adakron_batch_tokens_sum") == 7
    assert sample(bench.metrics, "adakron_batch_adapters_sum") == 2


async def test_stages_add_up_to_the_time_inside(bench: Bench) -> None:
    started_s = time.monotonic()
    call = bench.submit(("a", "x"))
    await call.outcomes()
    inside_s = time.monotonic() - started_s
    stages = call.submission.stages()
    assert min(stages) >= 0
    assert 0 < sum(stages) <= inside_s


# ---- who tokenises ---------------------------------------------------------------------------------------------------


async def test_a_worker_with_nothing_to_run_tokenises_itself(bench: Bench) -> None:
    tokenisers: list[str] = []
    encode = bench.engine.encode

    def note(*arguments: Any) -> Any:
        tokenisers.append(threading.current_thread().name)
        return encode(*arguments)

    bench.engine.encode = note  # type: ignore[method-assign]
    held = await bench.hold()
    waiting = bench.submit(("b", "another"))
    await until(lambda: len(tokenisers) == 2)
    bench.engine.gate.set()
    await asyncio.gather(held, waiting.outcomes())
    assert tokenisers == ["adakron-worker", "adakron-tokenizer"]


async def test_what_the_worker_leaves_untokenised_does_not_wait_for_its_batch(bench: Bench) -> None:
    bench.engine.gate.clear()
    text = "x" * (MAX_ENCODE_CHARACTERS // 2 + 1)
    calls = [bench.submit(("a", "short")), bench.submit(("b", text)), bench.submit(("c", text))]
    await until(bench.engine.running.is_set)
    await until(lambda: bench.engine.encode_calls == [2, 1])
    bench.engine.gate.set()
    await asyncio.gather(*(call.outcomes() for call in calls))


async def test_calls_of_one_turn_of_the_loop_are_tokenised_together(bench: Bench) -> None:
    calls = [bench.submit(("a", f"text {number}")) for number in range(5)]
    await asyncio.gather(*(call.outcomes() for call in calls))
    assert bench.engine.encode_calls == [5]


async def test_what_the_worker_does_first_is_done_by_the_thread_that_runs_batches() -> None:
    began: list[str] = []
    async with running(Bench(on_worker=lambda: began.append(threading.current_thread().name))) as bench:
        await bench.outcomes(("a", "text"))
    assert began == ["adakron-worker"]
