from typing import Any

import pytest

from tests.server.dialects.conftest import Bench

SPAM = "/adapters/acme/spam"


async def test_one_text_is_a_flat_list(bench: Bench) -> None:
    (expected,) = await bench.native("acme/spam", "a")
    assert (await bench.post(f"{SPAM}/predict", {"inputs": "a"})).json() == expected["scores"]


async def test_two_strings_are_one_pair(bench: Bench) -> None:
    (expected,) = await bench.native("stsb", [{"text": "a", "text_pair": "b"}])
    reply = await bench.post("/adapters/stsb/predict", {"inputs": ["a", "b"]})
    assert reply.json() == [{"label": "similarity", "score": expected["value"]}]


async def test_a_list_of_lists_is_a_batch(bench: Bench) -> None:
    reply = await bench.post(f"{SPAM}/predict", {"inputs": [["a"], ["b"]]})
    assert reply.json() == [row["scores"] for row in await bench.native("acme/spam", ["a", "b"])]


async def test_a_batch_of_one_is_still_a_batch(bench: Bench) -> None:
    assert isinstance((await bench.post(f"{SPAM}/predict", {"inputs": [["a"]]})).json()[0], list)


async def test_raw_scores_are_logits(bench: Bench) -> None:
    raw = (await bench.post(f"{SPAM}/predict", {"inputs": "a", "raw_scores": True})).json()
    same = (await bench.post(SPAM, {"inputs": "a", "parameters": {"function_to_apply": "none"}})).json()[0]
    assert raw == same


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"inputs": ["a", "b", "c"]}, "INVALID_REQUEST"),
        ({"inputs": []}, "INVALID_REQUEST"),
        ({"inputs": [[]]}, "INVALID_REQUEST"),
        ({"inputs": [["a"], "b"]}, "INVALID_REQUEST"),
        ({"inputs": [["a", 1]]}, "INVALID_REQUEST"),
        ({"inputs": [["a", "b", "c"]]}, "INVALID_REQUEST"),
        ({"inputs": {"text": "a"}}, "INVALID_REQUEST"),
        ({"inputs": [["a"]] * 129}, "INVALID_REQUEST"),
        ({"inputs": "a", "truncation_direction": "left"}, "INVALID_REQUEST"),
        ({"inputs": "a", "more": 1}, "INVALID_REQUEST"),
        ({"inputs": "x " * 500, "truncate": False}, "TOO_LONG"),
        ({"inputs": [["a"], [" "]]}, "BLANK_TEXT"),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_bad_bodies_are_422(bench: Bench, body: Any, code: str) -> None:
    reply = await bench.post(f"{SPAM}/predict", body)
    assert (reply.status_code, reply.json()["code"], reply.json()["error_type"]) == (422, code, "Validation")


@pytest.mark.parametrize("body", [{"truncate": None}, {"truncation_direction": "Right"}, {"truncate": True}])
async def test_defaults_of_tei_clients_pass(bench: Bench, body: dict[str, Any]) -> None:
    assert (await bench.post(f"{SPAM}/predict", {"inputs": "x " * 500, **body})).status_code == 200


async def test_reply_counts_in_headers(bench: Bench) -> None:
    headers = (await bench.post(f"{SPAM}/predict", {"inputs": [["a b"], ["c"]]})).headers
    assert headers["x-compute-characters"] == "4"
    assert headers["x-compute-tokens"] == str(4 + 3)
    assert headers["x-compute-type"] == "cpu"
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert headers[name].isdigit()


async def test_info_describes_the_adapter(bench: Bench) -> None:
    reply = await bench.client.get(f"{SPAM}@1/info")
    info = reply.json()
    assert (reply.status_code, reply.headers["x-adapter-version"]) == (200, "1")
    assert (info["model_id"], info["served_model_name"], info["max_input_length"]) == ("acme/spam", "acme/spam@1", 128)
    assert info["model_type"] == {
        "classifier": {
            "id2label": {"0": "ham", "1": "spam", "2": "a:b"},
            "label2id": {"ham": 0, "spam": 1, "a:b": 2},
        }
    }
    assert (info["max_client_batch_size"], info["max_batch_tokens"]) == (128, 1000)


@pytest.mark.parametrize("tail", ["info", "health", "predict"])
async def test_unknown_adapter_is_404(bench: Bench, tail: str) -> None:
    call = bench.post("/adapters/nope/predict", {"inputs": "a"}) if tail == "predict" else None
    reply = await call if call else await bench.client.get(f"/adapters/nope/{tail}")
    assert (reply.status_code, reply.json()["code"]) == (404, "ADAPTER_NOT_FOUND")


async def test_health_is_200_where_calls_are_taken(bench: Bench) -> None:
    assert (await bench.client.get(f"{SPAM}/health")).status_code == 200


async def test_health_is_503_unhealthy_where_they_are_not(bench: Bench) -> None:
    await bench.service.stop(grace_s=1)
    reply = await bench.client.get(f"{SPAM}/health")
    assert (reply.status_code, reply.json()["error_type"]) == (503, "Unhealthy")
    assert "retry-after" in reply.headers
