"""Every call of both clients against the real applications, and against faults on the way."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.client import (
    ClientError,
    ConflictError,
    DeadlineError,
    Item,
    NotFoundError,
    OverloadedError,
    RefusedError,
    Result,
    RowFailure,
    StatusError,
    UnexpectedAnswerError,
    UnreachableError,
    replies,
)
from server.telemetry.served import ServedCounts
from tests.server.client.conftest import Caller
from tests.server.client.promises import holds
from tests.server.fakes import tiny_adapter, with_broken_tensor
from tests.server.in_process import Answer, broken, status
from tests.server.telemetry.test_served import result

ONE, TWO = tiny_adapter(1), tiny_adapter(2)


# ---- classify ------------------------------------------------------------------------------------------------------


def test_a_text_has_a_result(call: Caller) -> None:
    found = call("classify", "a fine text", "sst2", top_k=None)
    assert isinstance(found, Result)
    assert (found.adapter, found.version, found.n_tokens, found.truncated) == ("sst2", 1, 5, False)
    assert (found.label, found.score) == found.scores[0]
    assert {score.label for score in found.scores} == {"negative", "positive"}
    assert (found.labels, found.value) == (None, None)


def test_a_label_that_is_not_sure_enough_is_withheld(call: Caller) -> None:
    plain, withheld = (call("classify", "a fine text", "sst2", abstain_below=below) for below in (0, 1))
    assert not plain.abstained
    assert withheld.abstained
    assert (withheld.label, withheld.score, withheld.scores) == (None, plain.score, plain.scores)


def test_pairs_and_every_kind_of_adapter(call: Caller) -> None:
    assert isinstance(call("classify", ("a", "b"), "stsb").value, float)
    assert isinstance(call("classify", Item("a", "b", adapter="stsb@1")).value, float)
    assert isinstance(call("classify", "a", "acme/topics").labels, tuple)


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        ((" ", "sst2"), RefusedError, "BLANK_TEXT"),
        (("a", "stsb"), RefusedError, "MISSING_PAIR"),
        (("a", "nothing"), NotFoundError, "ADAPTER_NOT_FOUND"),
        (("a", "sst2@9"), NotFoundError, "VERSION_NOT_FOUND"),
        (("a", "SST2"), RefusedError, "INVALID_REQUEST"),
        (("x" * 2**20, "sst2"), RefusedError, "BODY_TOO_LARGE"),
        (("\ud800", "sst2"), RefusedError, "MALFORMED_BODY"),
    ],
)
def test_what_the_server_refuses_is_raised(call: Caller, words: Any, kind: type[StatusError], code: str) -> None:
    with pytest.raises(kind) as caught:
        call("classify", *words)
    assert caught.value.code == code
    assert caught.value.request_id


def test_options_reach_the_server(call: Caller) -> None:
    call("classify", "a", "sst2", route_key="me")
    assert call.server.bench.resolver.route_keys == ["me"]
    with pytest.raises(RefusedError, match="TOO_LONG"):
        call("classify", "x " * 200, "sst2", truncate=False)
    with pytest.raises(OverloadedError) as caught:
        call("classify", "a", "sst2", min_generation=99, client={"attempts": 1})
    assert caught.value.retry_after_s is not None


def test_many_texts_are_answered_in_order_in_requests_that_fit(call: Caller) -> None:
    texts = [f"text number {n}" for n in range(300)]
    found = call("classify_many", texts, "sst2", concurrency=3)
    assert [len(json.loads(request.content)["inputs"]) for request in call.server.wire.requests] == [128, 128, 44]
    alone = [call("classify", text, "sst2") for text in texts[::60]]
    assert found[::60] == alone
    assert len(found) == 300
    assert call("classify_many", [], "sst2") == []


def test_texts_may_name_their_adapters(call: Caller) -> None:
    found = call("classify_many", ["a", Item("b", adapter="acme/topics"), ("c", "d")], "stsb")
    assert [outcome.adapter for outcome in found] == ["stsb", "acme/topics", "stsb"]
    assert isinstance(found[0], RowFailure)
    with pytest.raises(ValueError, match="names no adapter"):
        call("classify_many", ["a"])


def test_a_text_that_fails_is_a_failure_in_its_place(call: Caller) -> None:
    found = call("classify_many", ["a", " ", "b", "y" * 2**20, "c"], "sst2")
    assert [type(outcome) for outcome in found] == [Result, RowFailure, Result, RowFailure, Result]
    assert [found[1].code, found[3].code] == ["BLANK_TEXT", "BODY_TOO_LARGE"]
    assert str(found[1]).startswith("BLANK_TEXT: ")


@pytest.mark.parametrize("text", [" ", "\ud800"])
def test_every_text_that_fails_has_its_own_failure(call: Caller, text: str) -> None:
    found = call("classify_many", [text] * 5, "sst2")
    assert [type(outcome) for outcome in found] == [RowFailure] * 5
    assert [type(outcome) for outcome in call("classify_many", [text, "a", text], "sst2")] == [
        RowFailure,
        Result,
        RowFailure,
    ]


def test_failures_of_a_request_that_failed_whole_are_in_order(call: Caller) -> None:
    found = call("classify_many", [" ", "\ud800", ("a", "b"), "\ud800", "\ud800"], "sst2")
    assert [getattr(outcome, "code", None) for outcome in found] == [
        "BLANK_TEXT",
        "MALFORMED_BODY",
        None,
        "MALFORMED_BODY",
        "MALFORMED_BODY",
    ]


def test_many_texts_for_an_unknown_adapter_fail_at_once(call: Caller) -> None:
    with pytest.raises(NotFoundError):
        call("classify_many", ["a"] * 1000, "nothing", concurrency=2)
    assert len(call.server.wire.requests) <= 4


def test_stream_reads_no_further_than_it_must(call: Caller) -> None:
    read = 0

    def texts() -> Any:
        nonlocal read
        for read in range(1, 128 * 20 + 1):
            yield f"text {read}"

    if call.kind == "blocking":
        from server.client import AdaKron

        with AdaKron("http://test", transport=call.server.wire) as client:
            outcomes = client.stream(texts(), "sst2", concurrency=2)
            assert isinstance(next(outcomes), Result)
            outcomes.close()
        assert read <= 128 * 4
    else:
        assert len(call("stream", texts(), "sst2", concurrency=2)) == 128 * 20


def test_fan_out_asks_several_adapters_at_once(call: Caller) -> None:
    topics, films = call("fan_out", ["a", "b"], ["acme/topics", "sst2"])
    assert (topics.adapter, films.adapter, films.version) == ("acme/topics", "sst2", 1)
    assert [type(outcome) for outcome in films.results] == [Result, Result]
    assert films.results[0] == call("classify", "a", "sst2")
    assert len(call("fan_out", ("a", "b"), ["stsb"])[0].results) == 1
    assert len(call.server.wire.requests) == 3


# ---- adapters ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ONE.write(tmp_path / "one")
    return tmp_path / "one"


def test_put_takes_bytes_a_file_and_a_folder(call: Caller, folder: Path) -> None:
    reply = call("put", "acme/x", folder)
    assert holds(replies.PutReply, reply)
    assert (reply["version"], reply["active"], reply["sha256"]) == (1, True, ONE.sha256)
    assert call("put", "acme/x", folder / "adapter_model.safetensors")["version"] == 1
    assert call("put", "acme/x", TWO.to_bytes(), activate=False)["active"] is False


def test_put_of_a_bad_file_says_which_tensor(call: Caller) -> None:
    with pytest.raises(RefusedError) as caught:
        call("put", "x", with_broken_tensor(ONE))
    assert caught.value.code == "NON_FINITE_TENSOR"
    assert "tensor" in caught.value.details


def test_pages_and_all(call: Caller) -> None:
    for name in ("c", "a", "b"):
        call("put", name, ONE.to_bytes())
    page = call("page", 2)
    assert holds(replies.Page, page)
    assert [adapter["name"] for adapter in page["adapters"]] == ["a", "b"]
    assert [adapter["name"] for adapter in call("page", 2, page["next"])["adapters"]] == ["c"]
    assert [adapter["name"] for adapter in call("adapters", limit=1)] == ["a", "b", "c"]


def test_one_adapter_with_its_history(call: Caller) -> None:
    call("put", "x", ONE.to_bytes())
    call("put", "x", TWO.to_bytes(), activate=False)
    split = call("split", "x", {1: 90, 2: 10}, 2)
    assert holds(replies.SplitDone, split)
    reply = call("adapter", "x")
    assert holds(replies.AdapterReply, reply)
    assert reply["history"][0]["action"] == "split"
    with pytest.raises(NotFoundError):
        call("adapter", "nothing")


def test_activate_and_rollback(call: Caller) -> None:
    call("put", "x", ONE.to_bytes())
    with pytest.raises(ClientError, match="before the present one"):
        call("rollback", "x")
    call("put", "x", TWO.to_bytes())
    reply = call("rollback", "x")
    assert holds(replies.ActivateReply, reply)
    assert reply["version"] == 1
    assert call("rollback", "x")["version"] == 2
    assert call("rollback", "x", 1)["version"] == 1
    assert call("activate", "x", 2)["version"] == 2


def test_changes_can_be_held_to_a_generation(call: Caller) -> None:
    generation = call("put", "x", ONE.to_bytes())["generation"]
    for change in (("put", "x", TWO.to_bytes()), ("activate", "x", 1), ("split", "x", {1: 100}), ("delete", "x")):
        with pytest.raises(ConflictError):
            call(*change, if_match=generation + 7)
    assert call("activate", "x", 1, if_match=generation)["active"]


def test_delete_and_export(call: Caller) -> None:
    call("put", "x", ONE.to_bytes())
    call("put", "x", TWO.to_bytes())
    assert call("export", "x") == TWO.to_bytes()
    assert call("export", "x", 1) == ONE.to_bytes()
    with pytest.raises(ConflictError):
        call("delete", "x", 2)
    assert holds(replies.DeleteReply, call("delete", "x", 1))
    assert call("delete", "x")["versions"] == [2]
    with pytest.raises(NotFoundError):
        call("export", "x")


def test_export_where_nothing_is_active(call: Caller) -> None:
    call("put", "x", ONE.to_bytes(), activate=False)
    with pytest.raises(NotFoundError, match="x@1"):
        call("export", "x")


def test_put_many(call: Caller, folder: Path) -> None:
    reply = call("put_many", [("a", folder), ("b", with_broken_tensor(ONE)), ("c", TWO.to_bytes())])
    assert holds(replies.BulkReply, reply)
    assert [result["status"] for result in reply["results"]] == [201, 422, 201]
    assert replies.complaint_of(reply["results"][1]["error"]).startswith("NON_FINITE_TENSOR: ")


def test_info_and_ready(call: Caller) -> None:
    assert call("info")["engine"]["backbone"] == "acme/Encoder"
    assert call("ready") is True
    call.server.bench.ready = False
    assert call("ready") is False
    assert len(call.server.wire.requests) == 3


def test_a_broken_promise_is_noticed(call: Caller) -> None:
    reply = call("put", "x", ONE.to_bytes())
    assert not holds(replies.PutReply, {name: value for name, value in reply.items() if name != "sha256"})
    assert not holds(replies.PutReply, reply | {"lagging": [1]})
    assert not holds(replies.PutReply, reply | {"version": True})


# ---- faults --------------------------------------------------------------------------------------------------------

PASSING: list[Answer] = [
    status(503, **{"retry-after": "0"}),
    status(429, **{"retry-after": "0"}),
    status(500),
    status(502),
    broken(httpx.ConnectError),
    broken(httpx.ReadError),
    broken(httpx.RemoteProtocolError),
]


@pytest.mark.parametrize("answer", PASSING)
def test_classify_survives_what_passes(call: Caller, answer: Answer) -> None:
    call.server.wire.first = [answer] * 3
    assert isinstance(call("classify", "a", "sst2"), Result)
    assert len(call.server.wire.requests) == 4


def test_a_change_whose_answer_was_lost_is_done_once(call: Caller) -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        if call.kind == "blocking":
            call.server.wire.answer(request)  # it was done, and nobody heard of it
        raise httpx.ReadError("connection reset")

    call.server.wire.first = [lost]
    assert call("put", "x", ONE.to_bytes())["version"] == 1
    first, second = call.server.wire.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert call("adapter", "x")["generation"] == 1


def test_patience_ends(call: Caller) -> None:
    call.server.wire.first = [broken(httpx.ConnectError)] * 4
    with pytest.raises(UnreachableError, match="http://test"):
        call("info")
    call.server.wire.first = [status(503, **{"retry-after": "0"})] * 4
    with pytest.raises(OverloadedError):
        call("info")
    assert call.server.wire.first == []


def test_no_answer_in_time(call: Caller) -> None:
    call.server.wire.first = [broken(httpx.ReadTimeout)]
    with pytest.raises(DeadlineError):
        call("classify", "a", "sst2")
    assert len(call.server.wire.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"results": 3}', b'{"results": [{}]}', b'{"results": []}'])
def test_another_service_is_told_apart(call: Caller, body: bytes) -> None:
    call.server.wire.first = [lambda request: httpx.Response(200, content=body, request=request)]
    with pytest.raises(UnexpectedAnswerError, match="ADAKRON_URL"):
        call("classify", "a", "sst2")


def test_an_error_among_many_stops_the_rest(call: Caller) -> None:
    call.server.wire.first = [status(507)]
    with pytest.raises(StatusError, match="HTTP_507"):
        call("classify_many", ["a"] * 128 * 40, "sst2", concurrency=2)
    assert len(call.server.wire.requests) < 10


def test_an_answer_with_too_few_rows_is_no_answer(call: Caller) -> None:
    def short(request: httpx.Request) -> httpx.Response:
        body = {
            "adapter": "sst2",
            "version": 1,
            "sha256": "0",
            "results": [{"value": 1.0, "n_tokens": 3, "truncated": False}],
        }
        return httpx.Response(200, json=body, request=request)

    call.server.wire.first = [short]
    with pytest.raises(UnexpectedAnswerError):
        call("classify_many", ["a", "b"], "sst2")


def test_what_an_adapter_served(call: Caller) -> None:
    call("put", "x", ONE.to_bytes())
    counts = ServedCounts()
    call.server.house.replicas.counts = [counts]
    assert holds(replies.StatsReply, call("stats", "x"))
    counts.note("x", 1, [result(0.9, 0.1)] * 200, 0, 0.01)
    reply = call("stats", "x")
    assert holds(replies.StatsReply, reply)
    assert reply["versions"][0]["rows"] == {"good": 200, "failed": 0}
    with pytest.raises(NotFoundError):
        call("stats", "nothing")
