from typing import Any

import numpy as np
import pytest

from server.dialects.huggingface import HuggingFaceRequest
from tests.server.dialects.conftest import Bench

SPAM = "/adapters/acme/spam"


async def test_one_text_is_answered_by_a_nested_list(bench: Bench) -> None:
    reply = await bench.post(SPAM, {"inputs": "free money", "parameters": {}})
    (expected,) = await bench.native("acme/spam", "free money")
    assert (reply.status_code, reply.json()) == (200, [expected["scores"]])
    assert reply.headers["content-type"] == "application/json"


async def test_a_list_is_a_batch(bench: Bench) -> None:
    reply = await bench.post(SPAM, {"inputs": ["a", "b", {"text": "c"}]})
    assert reply.json() == [row["scores"] for row in await bench.native("acme/spam", ["a", "b", "c"])]


async def test_top_k_cuts(bench: Bench) -> None:
    whole = (await bench.post(SPAM, {"inputs": "a"})).json()[0]
    best = (await bench.post(SPAM, {"inputs": "a", "parameters": {"top_k": 1}})).json()[0]
    assert len(whole) == 3
    assert best == whole[:1]


async def test_a_pair_passes_and_a_regression_is_one_label(bench: Bench) -> None:
    pair = {"text": "a", "text_pair": "b"}
    (expected,) = await bench.native("stsb", [pair])
    reply = await bench.post("/adapters/stsb", {"inputs": pair})
    assert reply.json() == [[{"label": "similarity", "score": expected["value"]}]]


@pytest.mark.parametrize("adapter", ["sst2", "topics"])
async def test_function_to_apply_changes_scores(bench: Bench, adapter: str) -> None:
    found = {}
    for function in ("softmax", "sigmoid", "none"):
        body = {"inputs": "a", "parameters": {"function_to_apply": function}}
        pairs = (await bench.post(f"/adapters/{adapter}", body)).json()[0]
        assert [pair["score"] for pair in pairs] == sorted((pair["score"] for pair in pairs), reverse=True)
        found[function] = np.array([pair["score"] for pair in pairs])
    np.testing.assert_allclose(found["softmax"].sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(found["sigmoid"], 1 / (1 + np.exp(-found["none"])), rtol=1e-6)
    np.testing.assert_allclose(found["softmax"], np.exp(found["none"]) / np.exp(found["none"]).sum(), rtol=1e-6)


@pytest.mark.parametrize("path", [SPAM, f"{SPAM}/", f"{SPAM}@2", "/adapters/acme%2Fspam", "/adapters/acme%2Fspam%402"])
async def test_the_base_may_be_spelled_so(bench: Bench, path: str) -> None:
    reply = await bench.post(path, {"inputs": "a"})
    assert reply.status_code == 200
    assert (reply.headers["x-adapter-id"], reply.headers["x-adapter-version"]) == ("acme/spam", "2")
    assert len(reply.headers["x-adapter-sha256"]) == 12
    assert "forward;dur=" in reply.headers["server-timing"]


async def test_a_pinned_version_answers(bench: Bench) -> None:
    assert (await bench.post(f"{SPAM}@1", {"inputs": "a"})).headers["x-adapter-version"] == "1"


async def test_a_text_that_was_cut_is_told_in_a_header(bench: Bench) -> None:
    reply = await bench.post(SPAM, {"inputs": ["x " * 500, "short"]})
    assert reply.headers["x-hf-warning"] == "truncated; 1 of 2 texts were cut at the adapter's max_length"
    assert "x-hf-warning" not in (await bench.post(SPAM, {"inputs": "short"})).headers


async def test_truncation_false_refuses_a_long_text(bench: Bench) -> None:
    reply = await bench.post(SPAM, {"inputs": "x " * 500, "parameters": {"truncation": False}})
    assert (reply.status_code, reply.json()["code"]) == (422, "TOO_LONG")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 422, "INVALID_REQUEST", "inputs"),
        ([], 422, "INVALID_REQUEST", None),
        (b"{", 400, "MALFORMED_BODY", None),
        (b'{"inputs": NaN}', 400, "MALFORMED_BODY", None),
        ({"inputs": []}, 422, "INVALID_REQUEST", "inputs"),
        ({"inputs": 7}, 422, "INVALID_REQUEST", "inputs"),
        ({"inputs": [["a"]]}, 422, "INVALID_REQUEST", "inputs.0"),
        ({"inputs": ["a"] * 129}, 422, "INVALID_REQUEST", "inputs"),
        ({"inputs": {"text": "a", "pair": "b"}}, 422, "INVALID_REQUEST", "inputs.pair"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "INVALID_REQUEST", "parameters.top_k"),
        ({"inputs": "a", "parameters": {"top_k": "1"}}, 422, "INVALID_REQUEST", "parameters.top_k"),
        (
            {"inputs": "a", "parameters": {"function_to_apply": "tanh"}},
            422,
            "INVALID_REQUEST",
            "parameters.function_to_apply",
        ),
        ({"inputs": "a", "parameters": {"max_new_tokens": 1}}, 422, "INVALID_REQUEST", "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"adapter_id": "sst2"}}, 400, "CONFLICTING_ADAPTER", "parameters.adapter_id"),
        ({"inputs": " "}, 422, "BLANK_TEXT", "inputs"),
        ({"inputs": ["a", " "]}, 422, "BLANK_TEXT", "inputs.1"),
        ({"inputs": [" ", "a"]}, 422, "BLANK_TEXT", "inputs.0"),
        ({"inputs": "x" * 20_001}, 422, "TEXT_TOO_LARGE", "inputs"),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_bad_bodies_have_their_status(bench: Bench, body: Any, status: int, code: str, param: str | None) -> None:
    reply = await bench.post(SPAM, body)
    problem = reply.json()
    assert (reply.status_code, problem["code"], problem["param"]) == (status, code, param)
    assert reply.headers["content-type"] == "application/problem+json"
    assert isinstance(problem["error"], str)
    assert problem["error_type"] == "Validation"
    assert isinstance(problem.get("errors", []), list)
    assert reply.headers["x-error-message"].startswith(code)


async def test_errors_without_a_message_are_never_in_the_list_of_errors(bench: Bench) -> None:
    problem = (await bench.post(SPAM, {"inputs": "a", "x": 1, "y": 2})).json()
    assert [set(error) for error in problem["errors"]] == [{"message", "param"}] * 2


async def test_an_unknown_adapter_is_404_with_the_hint_in_error(bench: Bench) -> None:
    reply = await bench.post("/adapters/acme/nope", {"inputs": "a"})
    assert reply.status_code == 404
    assert reply.json()["error"] == "no adapter 'acme/nope' Hint: did you mean sst2?"


@pytest.mark.parametrize(
    "path", ["/adapters/", "/adapters/A", "/adapters/a/b/c", "/adapters/sst2@0", "/adapters/..%2Fx"]
)
async def test_what_is_no_name_is_422(bench: Bench, path: str) -> None:
    assert (await bench.post(path, {"inputs": "a"})).status_code == 422


async def test_a_header_that_names_another_adapter_is_400(bench: Bench) -> None:
    reply = await bench.post(SPAM, {"inputs": "a"}, **{"x-adapter-id": "sst2"})
    assert (reply.status_code, reply.json()["code"]) == (400, "CONFLICTING_ADAPTER")
    assert (await bench.post(SPAM, {"inputs": "a"}, **{"x-adapter-id": "acme/spam"})).status_code == 200


async def test_overload_is_429_and_never_503(bench: Bench) -> None:
    async with bench.overloaded():
        reply = await bench.post(SPAM, {"inputs": ["x"] * 100})
        assert (reply.status_code, reply.json()["error_type"]) == (429, "Overloaded")
        assert reply.headers["retry-after"] in "123"


async def test_the_deadline_is_a_header(bench: Bench) -> None:
    bench.engine.gate.clear()
    assert (await bench.post(SPAM, {"inputs": "a"}, **{"x-timeout-s": "0.05"})).status_code == 504


async def test_another_content_type_is_415(bench: Bench) -> None:
    assert (await bench.post(SPAM, b"{}", **{"content-type": "text/plain"})).status_code == 415


@pytest.mark.parametrize(("path", "allowed"), [(SPAM, "POST"), (f"{SPAM}/predict", "POST")])
async def test_get_is_405(bench: Bench, path: str, allowed: str) -> None:
    reply = await bench.client.get(path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("tail", ["health", "info"])
async def test_post_to_what_is_read_is_405(bench: Bench, tail: str) -> None:
    reply = await bench.post(f"{SPAM}/{tail}", {"inputs": "a"})
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")


async def test_a_secret_is_not_echoed(bench: Bench) -> None:
    secret = "s3cr3t" * 2000
    for body in ({"inputs": "a", secret: 1}, {"inputs": {"text": "a", secret: 1}}, {"inputs": [{secret: secret}]}):
        reply = await bench.post(SPAM, body, authorization=f"Bearer {secret[:60]}")
        assert reply.status_code == 422
        assert reply.text.count("s3cr3t") <= 4 * 11


def test_form_is_documented() -> None:
    assert HuggingFaceRequest.model_json_schema()["required"] == ["inputs"]
