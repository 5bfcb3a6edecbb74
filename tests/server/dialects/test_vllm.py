from typing import Any

import numpy as np
import pytest

from server.errors import AdapterNotFoundError, AlreadyLoadedError
from tests.server.dialects.conftest import Bench

LABELS = ("ham", "spam", "a:b")
BOTH = pytest.mark.parametrize("path", ["/classify", "/v1/classify"])


@BOTH
async def test_probs_are_in_the_order_of_the_labels(bench: Bench, path: str) -> None:
    reply = await bench.post(path, {"model": "acme/spam", "input": ["one text", "two"]}, **{"x-request-id": "mine"})
    body = reply.json()
    assert (reply.status_code, body["object"], body["model"], body["id"]) == (200, "list", "acme/spam", "classify-mine")
    for index, row in enumerate(await bench.native("acme/spam", ["one text", "two"])):
        scores = {pair["label"]: pair["score"] for pair in row["scores"]}
        assert body["data"][index] == {
            "index": index,
            "label": row["label"],
            "probs": [scores[label] for label in LABELS],
            "num_classes": 3,
        }
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (7, 7)
    assert reply.headers["x-adapter-version"] == "2"


@BOTH
async def test_one_text_and_a_pinned_version(bench: Bench, path: str) -> None:
    reply = await bench.post(path, {"model": "acme/spam@1", "input": "one"})
    assert (len(reply.json()["data"]), reply.headers["x-adapter-version"]) == (1, "1")


async def test_without_activation_probs_are_logits(bench: Bench) -> None:
    body = {"model": "acme/spam", "input": "a"}
    logits = np.exp((await bench.post("/classify", {**body, "use_activation": False})).json()["data"][0]["probs"])
    probs = (await bench.post("/classify", {**body, "use_activation": None})).json()["data"][0]["probs"]
    np.testing.assert_allclose(logits / logits.sum(), probs, rtol=1e-5)


async def test_multi_label_gives_each_labels_own_probability(bench: Bench) -> None:
    (row,) = (await bench.post("/classify", {"model": "topics", "input": "a"})).json()["data"]
    scores = {pair["label"]: pair["score"] for pair in (await bench.native("topics", "a"))[0]["scores"]}
    assert row["probs"] == [scores["Sport"], scores["Gesundheit ✓"]]


async def test_the_adapter_may_be_named_in_the_header(bench: Bench) -> None:
    reply = await bench.post("/classify", {"input": "a"}, **{"x-adapter-id": "sst2"})
    assert (reply.status_code, reply.json()["model"]) == (200, "sst2")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "acme/spam"}, 422, "INVALID_REQUEST", "input"),
        ({"input": "a"}, 422, "INVALID_REQUEST", "model"),
        ({"model": "acme/spam", "input": [1, 2, 3]}, 422, "INVALID_REQUEST", "input"),
        ({"model": "acme/spam", "input": []}, 422, "INVALID_REQUEST", "input"),
        ({"model": "acme/spam", "input": ["a"] * 129}, 422, "INVALID_REQUEST", "input"),
        ({"model": "acme/spam", "input": ["a", " "]}, 422, "BLANK_TEXT", "input.1"),
        ({"model": "acme/spam", "input": " "}, 422, "BLANK_TEXT", "input"),
        ({"model": "acme/spam", "input": "x " * 500}, 422, "TOO_LONG", "input"),
        ({"model": "acme/spam", "input": "a", "truncate_prompt_tokens": 5}, 422, "INVALID_REQUEST", None),
        ({"model": "acme/spam", "input": "a", "truncation_side": "left"}, 422, "INVALID_REQUEST", "truncation_side"),
        ({"model": "acme/spam", "input": "a", "add_special_tokens": False}, 422, "INVALID_REQUEST", None),
        ({"model": "acme/spam", "input": "a", "priority": 1}, 422, "INVALID_REQUEST", "priority"),
        ({"model": "acme/spam", "input": "a", "temperature": 1}, 422, "INVALID_REQUEST", "temperature"),
        ({"model": "nope", "input": "a"}, 404, "ADAPTER_NOT_FOUND", "model"),
        ({"model": "acme/Encoder", "input": "a"}, 404, "ADAPTER_NOT_FOUND", "model"),
        ({"model": "A", "input": "a"}, 422, "INVALID_REQUEST", "model"),
    ],
    ids=lambda value: repr(value)[:60],
)
@BOTH
async def test_bad_calls_have_their_status_and_an_object(
    bench: Bench, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    reply = await bench.post(path, body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code)
    assert param is None or error["param"] == param
    assert reply.headers["content-type"] == "application/json"


async def test_a_long_text_is_cut_where_that_is_asked_for(bench: Bench) -> None:
    body = {"model": "acme/spam", "input": "x " * 500, "truncate_prompt_tokens": -1}
    assert (await bench.post("/classify", body)).json()["usage"]["prompt_tokens"] == 128


async def test_inputs_is_told_to_be_input(bench: Bench) -> None:
    error = (await bench.post("/classify", {"model": "sst2", "inputs": "a"})).json()["error"]
    assert (error["param"], error["hint"]) == ("input", "send model and input")


@pytest.mark.parametrize(
    "body",
    [
        {"model": "sst2", "input": "a", "adapter": "sst2"},
        {"model": "sst2", "inputs": "a"},
        {"adapter": "sst2", "input": "a"},
        {"items": [], "model": "sst2"},
    ],
)
async def test_keys_of_both_forms_are_422_with_a_hint(bench: Bench, body: Any) -> None:
    reply = await bench.post("/v1/classify", body)
    assert (reply.status_code, "not both" in reply.json()["error"]["hint"]) == (422, True)


async def test_keys_of_neither_form_are_422_with_a_hint(bench: Bench) -> None:
    reply = await bench.post("/v1/classify", {"top_k": 1})
    assert (reply.status_code, bool(reply.json()["error"]["hint"])) == (422, True)


async def test_two_different_names_are_400(bench: Bench) -> None:
    reply = await bench.post("/classify", {"model": "sst2", "input": "a"}, **{"x-adapter-id": "stsb"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "CONFLICTING_ADAPTER")


async def test_overload_is_429_with_retry_after(bench: Bench) -> None:
    async with bench.overloaded():
        reply = await bench.post("/classify", {"model": "sst2", "input": ["x"] * 100})
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "OVERLOADED")
        assert "retry-after" in reply.headers


# ---- models --------------------------------------------------------------------------------------------------------


async def test_models_are_the_backbone_and_what_answers(bench: Bench) -> None:
    bench.adapters.staged.add("topics")
    body = (await bench.client.get("/v1/models")).json()
    assert [(card["id"], card["parent"]) for card in body["data"]] == [
        ("acme/Encoder", None),
        ("acme/spam", "acme/Encoder"),
        ("sst2", "acme/Encoder"),
        ("stsb", "acme/Encoder"),
    ]
    assert (body["object"], body["has_more"], body["data"][1]["root"]) == ("list", False, "acme/spam@2")
    assert all(isinstance(card["created"], int) and card["object"] == "model" for card in body["data"])


async def test_models_come_in_pages(bench: Bench) -> None:
    found: list[str] = []
    after = ""
    for _ in range(5):
        page = (await bench.client.get(f"/v1/models?limit=2{after}")).json()
        found += [card["id"] for card in page["data"]]
        after = f"&after={found[-1]}"
        if not page["has_more"]:
            break
    assert found == ["acme/Encoder", "acme/spam", "sst2", "stsb", "topics"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "more=1", "after=" + "x" * 300])
async def test_bad_pages_are_422(bench: Bench, query: str) -> None:
    assert (await bench.client.get(f"/v1/models?{query}")).status_code == 422


async def test_one_model(bench: Bench) -> None:
    for path in ("/v1/models/acme/spam", "/v1/models/acme%2Fspam"):
        card = (await bench.client.get(path)).json()
        assert (card["id"], card["parent"], card["max_model_len"]) == ("acme/spam", "acme/Encoder", 128)
    assert (await bench.client.get("/v1/models/acme/spam@1")).json()["root"] == "acme/spam@1"
    assert (await bench.client.get("/v1/models/acme/Encoder")).json()["parent"] is None
    assert (await bench.client.get("/v1/models/nope")).status_code == 404


# ---- loading -------------------------------------------------------------------------------------------------------

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.mark.parametrize(
    ("more", "version", "may_replace"),
    [
        ({}, None, False),
        ({"lora_path": None}, None, False),
        ({"lora_path": ""}, None, False),
        ({"lora_path": "acme/spam"}, None, False),
        ({"lora_path": "acme/spam@1", "load_inplace": True}, 1, True),
    ],
)
async def test_load_is_of_what_is_registered(
    bench: Bench, more: dict[str, Any], version: int | None, may_replace: bool
) -> None:
    reply = await bench.post(LOAD, {"lora_name": "acme/spam", **more})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'acme/spam' added successfully.")
    assert reply.headers["content-type"].startswith("text/plain")
    assert bench.admin.calls == [("load", "acme/spam", version, may_replace)]


@pytest.mark.parametrize(
    "lora_path",
    [
        *["/etc/passwd", "../spam", "acme/spam/../x", "s3://bucket/x", "https://host/x", "sst2", "sst2@1"],
        *["acme/spam@", "acme/spam@0", "acme/spam@latest", "acme/spam@sha256:" + "0" * 64, "acme/spam2", "acme/spam/"],
    ],
)
async def test_load_takes_no_path(bench: Bench, lora_path: str) -> None:
    reply = await bench.post(LOAD, {"lora_name": "acme/spam", "lora_path": lora_path})
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "lora_path")
    assert bench.admin.calls == []


async def test_load_of_what_answers_has_vllms_word(bench: Bench) -> None:
    bench.admin.refusal = AlreadyLoadedError("adapter 'acme/spam' is loaded", param="lora_name")
    error = (await bench.post(LOAD, {"lora_name": "acme/spam"})).json()["error"]
    assert (error["type"], error["code"]) == ("InvalidUserInput", "ALREADY_LOADED")


async def test_unload(bench: Bench) -> None:
    reply = await bench.post(UNLOAD, {"lora_name": "acme/spam", "lora_int_id": None})
    assert reply.text == "Success: LoRA adapter 'acme/spam' removed successfully."
    assert bench.admin.calls == [("unload", "acme/spam")]


async def test_unload_of_the_unknown_is_vllms_not_found(bench: Bench) -> None:
    bench.admin.refusal = AdapterNotFoundError("no adapter 'nope'")
    reply = await bench.post(UNLOAD, {"lora_name": "nope"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
@pytest.mark.parametrize("body", [b"", {}, {"lora_name": "A"}, {"lora_name": 1}, {"lora_name": "a", "more": 1}])
async def test_bad_bodies_are_refused(bench: Bench, path: str, body: Any) -> None:
    assert (await bench.post(path, body)).status_code == (400 if body == b"" else 422)
    assert bench.admin.calls == []
