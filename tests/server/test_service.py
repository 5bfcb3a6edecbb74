import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from adakron import Result, Row
from server.errors import (
    AdapterNotFoundError,
    DeadlineExceededError,
    EngineFailedError,
    InputError,
    InvalidRequestError,
    NotReadyError,
    VersionNotFoundError,
)
from server.metrics import Metrics
from server.schemas import parse_classify_request
from server.service import Classified, Resolved, Service
from tests.server.stub_engine import StubEngine, StubResolver, config_of


async def until(condition: Callable[[], bool], within_s: float = 2.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        await asyncio.sleep(0.001)


class Bench:
    def __init__(self) -> None:
        self.engine = StubEngine()
        self.resolver = StubResolver(self.engine)
        self.metrics = Metrics()
        self.service = Service(
            self.engine,
            self.resolver,
            budget_tokens=1000,
            queue_limit_tokens=10_000,
            queue_limit_rows=200,
            metrics=self.metrics,
        )

    async def classify(self, body: dict[str, Any], timeout_s: float = 5.0) -> Classified:
        return await self.service.classify(parse_classify_request(body), timeout_s=timeout_s)

    async def answer(self, body: dict[str, Any]) -> Any:
        return (await self.classify(body)).answer


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.resolver.add("sst2")
    bench.resolver.add("acme/topics", config_of(("sport", "health", "law"), "multi_label_classification"))
    bench.resolver.add("stsb", config_of(("similarity",), "regression", takes_pair=True))
    await bench.service.start()
    yield bench
    bench.engine.gate.set()
    await bench.service.stop(grace_s=1)
    assert bench.engine.n_held == 0
    assert bench.engine.ran_after_release == []


# ---- answers -------------------------------------------------------------------------------------------------------


async def test_one_adapter_answers_with_its_identity_and_a_result_a_text(bench: Bench) -> None:
    answer = await bench.answer({"adapter": "sst2", "inputs": ["a text", {"text": "another"}]})
    assert list(answer) == ["adapter", "version", "sha256", "results"]
    assert (answer["adapter"], answer["version"]) == ("sst2", 1)
    assert answer["sha256"] == bench.resolver.versions["sst2"][1]
    assert len(answer["results"]) == 2
    result = answer["results"][0]
    assert set(result) == {"label", "score", "scores", "n_tokens", "truncated"}
    assert result["scores"] == [{"label": result["label"], "score": result["score"]}]


async def test_one_string_is_one_result(bench: Bench) -> None:
    assert len((await bench.answer({"adapter": "sst2", "inputs": "a text"}))["results"]) == 1


@pytest.mark.parametrize(("top_k", "pairs"), [(1, 1), (2, 2), (3, 3), (100, 3), (None, 3)])
async def test_scores_hold_top_k_pairs_falling(bench: Bench, top_k: int | None, pairs: int) -> None:
    answer = await bench.answer({"adapter": "acme/topics", "inputs": "a text", "top_k": top_k})
    scores = [pair["score"] for pair in answer["results"][0]["scores"]]
    assert len(scores) == pairs
    assert scores == sorted(scores, reverse=True)


async def test_multi_label_adds_the_labels_over_the_threshold(bench: Bench) -> None:
    answer = await bench.answer({"adapter": "acme/topics", "inputs": [f"text {n}" for n in range(20)], "top_k": None})
    for result in answer["results"]:
        assert result["labels"] == [pair["label"] for pair in result["scores"] if pair["score"] >= 0.5]


async def test_regression_is_a_value_and_nothing_of_labels(bench: Bench) -> None:
    answer = await bench.answer({"adapter": "stsb", "inputs": [{"text": "a", "text_pair": "b"}]})
    assert set(answer["results"][0]) == {"value", "n_tokens", "truncated"}


# ---- abstaining ----------------------------------------------------------------------------------------------------


async def test_a_score_below_the_threshold_has_no_label_and_says_so(bench: Bench) -> None:
    texts = [f"text {n}" for n in range(20)]
    plain = (await bench.answer({"adapter": "sst2", "inputs": texts}))["results"]
    middle = sorted(result["score"] for result in plain)[10]
    unsure = (await bench.answer({"adapter": "sst2", "inputs": texts, "abstain_below": middle}))["results"]
    for before, after in zip(plain, unsure, strict=True):
        if before["score"] < middle:
            assert after == before | {"label": None, "abstained": True}
        else:
            assert after == before  # a score that reaches the threshold is enough, and nothing is said of abstaining
    assert sum("abstained" in result for result in unsure) == 10


async def test_an_adapter_s_own_threshold_holds_unless_the_call_has_another(bench: Bench) -> None:
    bench.resolver.add("shy", config_of(threshold=0.999))
    assert (await bench.answer({"adapter": "shy", "inputs": "x"}))["results"][0]["abstained"] is True
    assert (await bench.answer({"adapter": "shy", "inputs": "x", "abstain_below": None}))["results"][0]["label"] is None
    for mine in (0, 0.1):
        result = (await bench.answer({"adapter": "shy", "inputs": "x", "abstain_below": mine}))["results"][0]
        assert result["label"] == result["scores"][0]["label"]
        assert "abstained" not in result


async def test_many_labels_keep_theirs_where_the_best_is_withheld(bench: Bench) -> None:
    body = {"adapter": "acme/topics", "inputs": [f"text {n}" for n in range(20)], "top_k": None}
    plain = (await bench.answer(body))["results"]
    withheld = (await bench.answer({**body, "abstain_below": 1}))["results"]
    assert [result["label"] for result in withheld] == [None] * 20
    assert [result["labels"] for result in withheld] == [result["labels"] for result in plain]


async def test_a_regression_has_nothing_to_abstain_from(bench: Bench) -> None:
    body = {"adapter": "stsb", "inputs": [{"text": "a", "text_pair": "b"}], "abstain_below": 0.5}
    with pytest.raises(InputError, match="stsb is a regression") as caught:
        await bench.answer(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        422,
        "NOTHING_TO_ABSTAIN_FROM",
        "abstain_below",
    )
    assert bench.engine.batches == []


async def test_a_regression_among_others_fails_alone(bench: Bench) -> None:
    items = [{"adapter": "stsb", "text": "a", "text_pair": "b"}, {"adapter": "sst2", "text": "a"}]
    answer = await bench.answer({"items": items, "abstain_below": 0})
    assert answer["errors"] == 1
    assert answer["results"][0]["error"]["code"] == "NOTHING_TO_ABSTAIN_FROM"
    assert answer["results"][1]["label"] is not None


async def test_fan_out_answers_in_the_order_asked(bench: Bench) -> None:
    answer = await bench.answer({"adapters": ["acme/topics", "sst2"], "inputs": ["x", "y", "z"]})
    assert list(answer) == ["results"]
    assert [part["adapter"] for part in answer["results"]] == ["acme/topics", "sst2"]
    assert [len(part["results"]) for part in answer["results"]] == [3, 3]
    alone = await bench.answer({"adapter": "sst2", "inputs": ["x", "y", "z"]})
    assert answer["results"][1] == alone


async def test_items_name_their_adapter_each(bench: Bench) -> None:
    answer = await bench.answer(
        {
            "items": [
                {"adapter": "stsb", "text": "a", "text_pair": "b"},
                {"adapter": "sst2", "text": "x"},
                {"adapter": "acme/topics@1", "text": "x"},
            ]
        }
    )
    assert [item["adapter"] for item in answer["results"]] == ["stsb", "sst2", "acme/topics"]
    assert "value" in answer["results"][0]
    alone = await bench.answer({"adapter": "sst2", "inputs": "x"})
    assert answer["results"][1]["score"] == alone["results"][0]["score"]
    assert answer["results"][1]["sha256"] == alone["sha256"]


async def test_a_pinned_version_answers_with_its_bare_name(bench: Bench) -> None:
    bench.resolver.add("sst2")
    active = await bench.answer({"adapter": "sst2", "inputs": "x"})
    pinned = await bench.answer({"adapter": "sst2@1", "inputs": "x"})
    assert (active["version"], pinned["version"]) == (2, 1)
    assert pinned["adapter"] == "sst2"
    assert pinned["sha256"] != active["sha256"]


async def test_the_only_adapter_is_told_apart_for_the_headers(bench: Bench) -> None:
    one = await bench.classify({"items": [{"adapter": "sst2", "text": "x"}, {"adapter": "sst2", "text": "y"}]})
    two = await bench.classify({"adapters": ["sst2", "acme/topics"], "inputs": "x"})
    assert one.adapter is not None
    assert one.adapter["adapter"] == "sst2"
    assert two.adapter is None


async def test_truncated_says_so(bench: Bench) -> None:
    answer = await bench.answer({"adapter": "sst2", "inputs": ["word " * 200, "word"]})
    assert [result["truncated"] for result in answer["results"]] == [True, False]


# ---- rows that fail ------------------------------------------------------------------------------------------------


async def test_bad_texts_are_errors_in_their_place(bench: Bench) -> None:
    answer = await bench.answer({"adapter": "sst2", "inputs": ["good", " ", {"text": "x" * 20_001}, "good"]})
    assert answer["errors"] == 2
    assert [("error" in result) for result in answer["results"]] == [False, True, True, False]
    assert answer["results"][1]["error"] == {
        "message": "the text is blank",
        "type": "InvalidRequestError",
        "code": "BLANK_TEXT",
        "param": "inputs.1",
        "hint": "send at least one word",
    }
    assert answer["results"][2]["error"]["param"] == "inputs.2.text"


async def test_errors_of_a_fan_out_are_counted_over_all(bench: Bench) -> None:
    answer = await bench.answer({"adapters": ["sst2", "stsb"], "inputs": ["no pair", " "]})
    assert answer["errors"] == 3
    assert [row["error"]["code"] for row in answer["results"][1]["results"]] == ["MISSING_PAIR", "BLANK_TEXT"]


async def test_a_failed_item_keeps_the_name_of_its_adapter(bench: Bench) -> None:
    answer = await bench.answer({"items": [{"adapter": "sst2", "text": "x"}, {"adapter": "stsb", "text": "x"}]})
    failed = answer["results"][1]
    assert set(failed) == {"adapter", "version", "sha256", "error"}
    assert failed["error"]["param"] == "items.1.text_pair"


async def test_the_first_error_speaks_for_a_call_without_any_result(bench: Bench) -> None:
    with pytest.raises(InputError) as caught:
        await bench.answer({"adapter": "stsb", "inputs": ["no pair", " "]})
    assert (caught.value.code, caught.value.param) == ("MISSING_PAIR", "inputs.0.text_pair")


async def test_too_long_is_an_error_only_with_truncate_false(bench: Bench) -> None:
    body = {"adapter": "sst2", "inputs": ["word " * 200]}
    assert (await bench.answer(body))["results"][0]["truncated"]
    with pytest.raises(InputError) as caught:
        await bench.answer({**body, "truncate": False})
    assert caught.value.code == "TOO_LONG"


async def test_a_numeric_failure_of_one_adapter_leaves_the_others(bench: Bench) -> None:
    bench.engine.numeric = {bench.resolver.versions["sst2"][1]}
    answer = await bench.answer({"adapters": ["sst2", "acme/topics"], "inputs": "x"})
    assert answer["results"][0]["results"][0]["error"]["code"] == "ADAPTER_NUMERIC_ERROR"
    assert "score" in answer["results"][1]["results"][0]
    assert answer["errors"] == 1


async def test_an_engine_failure_of_one_adapter_leaves_the_others(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.failing = {bench.resolver.versions["sst2"][1]}
    answer = await bench.answer({"adapters": ["sst2", "acme/topics"], "inputs": "x"})
    assert answer["results"][0]["results"][0]["error"]["code"] == "ENGINE_FAILED"
    assert "score" in answer["results"][1]["results"][0]
    with pytest.raises(EngineFailedError):
        await bench.answer({"adapter": "sst2", "inputs": "x"})


# ---- calls that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"adapter": "nope", "inputs": "x"}, "adapter"),
        ({"adapters": ["sst2", "nope"], "inputs": "x"}, "adapters.1"),
        ({"items": [{"adapter": name, "text": "x"} for name in ("sst2", "nope", "nope")]}, "items.1.adapter"),
    ],
)
async def test_an_unknown_adapter_fails_the_whole_call(bench: Bench, body: dict[str, Any], param: str) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        await bench.answer(body)
    assert caught.value.param == param
    assert caught.value.hint == "did you mean sst2?"
    assert bench.engine.batches == []


async def test_an_unknown_version_fails_the_whole_call(bench: Bench) -> None:
    with pytest.raises(VersionNotFoundError):
        await bench.answer({"adapter": "sst2@9", "inputs": "x"})


async def test_a_malformed_name_is_refused_where_it_stands(bench: Bench) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await bench.answer({"items": [{"adapter": "sst2", "text": "x"}, {"adapter": "../x", "text": "x"}]})
    assert caught.value.param == "items.1.adapter"


async def test_a_generation_ahead_of_this_replica_is_not_ready(bench: Bench) -> None:
    ahead = bench.resolver.generation + 1
    await bench.answer({"adapter": "sst2", "inputs": "x", "min_generation": ahead - 1})
    with pytest.raises(NotReadyError):
        await bench.answer({"adapter": "sst2", "inputs": "x", "min_generation": ahead})


@pytest.mark.parametrize(("adapters", "inputs", "passes"), [(2, 64, True), (2, 65, False), (128, 1, True)])
async def test_inputs_times_adapters_are_at_most_128_rows(
    bench: Bench, adapters: int, inputs: int, passes: bool
) -> None:
    body = {"adapters": ["sst2"] * adapters, "inputs": ["x"] * inputs}
    if passes:
        await bench.answer(body)
        return
    with pytest.raises(InvalidRequestError, match="130 rows"):
        await bench.answer(body)


async def test_an_adapter_named_many_times_is_resolved_and_leased_once(bench: Bench) -> None:
    await bench.answer({"items": [{"adapter": "sst2", "text": "x"}] * 50})
    assert bench.resolver.resolved == ["sst2"]
    assert bench.engine.leases_ever == 1


async def test_all_rows_of_a_call_get_the_version_of_its_arrival(bench: Bench) -> None:
    bench.engine.gate.clear()
    task = asyncio.create_task(bench.answer({"adapter": "sst2", "inputs": ["x", "y"]}))
    await until(bench.engine.running.is_set)
    bench.resolver.add("sst2")
    bench.engine.gate.set()
    assert (await task)["version"] == 1
    assert (await bench.answer({"adapter": "sst2", "inputs": "x"}))["version"] == 2


# ---- leases and deadlines; the fixture checks that all leases are back ---------------------------------------------


async def test_deadline_ends_the_call_at_once_though_the_engine_runs_on(bench: Bench) -> None:
    bench.engine.gate.clear()
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await bench.classify({"adapter": "sst2", "inputs": "x"}, timeout_s=0.05)
    assert time.monotonic() - started_s < 1
    assert bench.engine.n_held == 1  # the row is in the engine: its slot must stay
    bench.engine.gate.set()
    await until(lambda: bench.engine.n_held == 0)


async def test_deadline_covers_a_resolver_that_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(name: str, version: int | None, min_generation: int | None) -> Resolved:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(bench.resolver, "resolve", hang)
    with pytest.raises(DeadlineExceededError):
        await bench.classify({"adapter": "sst2", "inputs": "x"}, timeout_s=0.02)


async def test_a_timeout_that_is_not_ours_is_not_called_a_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(name: str, version: int | None, min_generation: int | None) -> Resolved:
        raise TimeoutError("of the store")

    monkeypatch.setattr(bench.resolver, "resolve", fail)
    with pytest.raises(TimeoutError, match="of the store"):
        await bench.answer({"adapter": "sst2", "inputs": "x"})


async def test_leases_come_back_when_a_later_name_is_unknown(bench: Bench) -> None:
    with pytest.raises(AdapterNotFoundError):
        await bench.answer({"adapters": ["sst2", "acme/topics", "nope"], "inputs": "x"})
    assert bench.engine.leases_ever == 2
    assert bench.engine.n_held == 0


async def test_leases_come_back_when_the_call_is_refused(bench: Bench) -> None:
    bench.engine.gate.clear()
    body = {"adapter": "sst2", "inputs": ["x"] * 100}
    tasks = [asyncio.create_task(bench.answer(body))]
    await until(bench.engine.running.is_set)
    tasks += [asyncio.create_task(bench.answer(body)) for _ in range(3)]  # 300 rows, where 200 may wait
    await until(lambda: any(task.done() for task in tasks))
    bench.engine.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["OverloadedError", "dict", "dict", "dict"]
    assert bench.engine.n_held == 0


async def test_leases_come_back_when_the_client_leaves(bench: Bench) -> None:
    bench.engine.gate.clear()
    task = asyncio.create_task(bench.answer({"adapter": "sst2", "inputs": "x"}))
    await until(bench.engine.running.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert bench.engine.n_held == 1
    bench.engine.gate.set()
    await until(lambda: bench.engine.n_held == 0)


# ---- readiness and probes ------------------------------------------------------------------------------------------


async def test_ready_between_start_and_stop() -> None:
    bench = Bench()
    assert not bench.service.ready()
    await bench.service.start()
    assert bench.service.ready()
    await bench.service.stop(grace_s=1)
    assert not bench.service.ready()


async def test_not_ready_after_a_thread_died(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.engine.deadly = {bench.resolver.add("sst2")}
    await bench.service.start()
    with pytest.raises(EngineFailedError):
        await bench.answer({"adapter": "sst2", "inputs": "x"})
    assert not bench.service.ready()
    await bench.service.stop(grace_s=1)


async def test_probe_rows_take_the_way_of_requests_and_keep_their_leases(bench: Bench) -> None:
    lease = bench.engine.lease(bench.resolver.versions["sst2"][1])
    outcomes = await bench.service.run_rows([Row(text="probe")], [lease], timeout_s=1)
    assert isinstance(outcomes[0], Result)
    assert lease.is_held
    lease.release()


async def test_a_probe_that_takes_too_long_returns_when_no_thread_has_its_rows(bench: Bench) -> None:
    lease = bench.engine.lease(bench.resolver.versions["sst2"][1])
    bench.engine.gate.clear()
    task = asyncio.create_task(bench.service.run_rows([Row(text="probe")], [lease], timeout_s=0.02))
    await asyncio.sleep(0.05)
    assert not task.done()
    bench.engine.gate.set()
    with pytest.raises(DeadlineExceededError):
        await task
    lease.release()


async def test_time_in_each_stage_is_counted(bench: Bench) -> None:
    await bench.answer({"adapter": "sst2", "inputs": "x"})
    for stage in ("tokenize", "queue", "forward"):
        assert bench.metrics.registry.get_sample_value("adakron_stage_seconds_count", {"stage": stage}) == 1


async def test_shadow_runs_behind_the_answer_and_is_never_in_it(bench: Bench) -> None:
    bench.resolver.add("sst2")
    bench.resolver.shadow["sst2"] = 1
    answer = await bench.answer({"adapter": "sst2", "inputs": ["good", "  ", "better"]})
    assert (answer["version"], len(answer["results"]), answer["errors"]) == (2, 3, 1)
    shadows = bench.service.shadows
    await asyncio.gather(*shadows._under_way)
    verdicts = shadows.verdicts("sst2", 1)
    assert verdicts["same"] + verdicts["different"] == 2
    assert {row.lease.key for batch in bench.engine.batches for row in batch} == set(
        bench.resolver.versions["sst2"].values()
    )
    assert bench.engine.n_held == 0


async def test_shadow_of_one_adapter_gets_only_its_rows(bench: Bench) -> None:
    bench.resolver.add("sst2")
    bench.resolver.shadow["sst2"] = 1
    items = [{"adapter": "sst2", "text": "a"}, {"adapter": "acme/topics", "text": "b"}]
    await bench.answer({"items": items})
    await asyncio.gather(*bench.service.shadows._under_way)
    assert sum(bench.service.shadows.verdicts("sst2", 1).values()) == 1


async def test_call_that_fails_has_no_shadow(bench: Bench) -> None:
    bench.resolver.shadow["sst2"] = 1
    with pytest.raises(InputError):
        await bench.answer({"adapter": "sst2", "inputs": ["  "]})
    assert not bench.service.shadows._under_way


async def test_an_adapter_that_cannot_be_read_fails_its_own_rows_alone(bench: Bench) -> None:
    sick = bench.resolver.versions["sst2"][1]
    bench.engine.unread = {sick, bench.resolver.versions["acme/topics"][1]}
    bench.engine.unreadable = {sick: NotReadyError("the adapter cannot be loaded: torn")}
    items = [{"adapter": name, "text": "a text"} for name in ("sst2", "acme/topics", "sst2")]
    answer = await bench.answer({"items": items})
    assert answer["errors"] == 2
    assert [result.get("error", {}).get("code") for result in answer["results"]] == ["NOT_READY", None, "NOT_READY"]
    assert answer["results"][1]["adapter"] == "acme/topics"
    with pytest.raises(NotReadyError, match="torn"):
        await bench.classify({"adapter": "sst2", "inputs": ["x"]})


async def test_leases_come_back_when_nothing_can_be_read(bench: Bench) -> None:
    key = bench.resolver.versions["sst2"][1]
    bench.engine.unread, bench.engine.unreadable = {key}, {key: NotReadyError("torn")}
    with pytest.raises(NotReadyError):
        await bench.classify({"adapter": "sst2", "inputs": ["x"]})
    assert bench.engine.n_held == 0


async def test_a_shadow_that_was_never_read_is_read_before_it_runs(bench: Bench) -> None:
    shadow = bench.resolver.add("sst2")
    bench.resolver.add("sst2")
    bench.engine.unread = {shadow}
    bench.resolver.shadow = {"sst2": 2}
    await bench.classify({"adapter": "sst2", "inputs": ["one", "two"]})
    await until(lambda: sum(bench.service.shadows.verdicts("sst2", 2).values()) == 2)
    assert bench.service.shadows.verdicts("sst2", 2)["failed"] == 0
