import gzip
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest

from server.dialects.tensors import read_elements, write_elements
from tests.server.dialects.conftest import Bench

SPAM = "/v2/models/acme--spam"
JSON = {"content-type": "application/json"}


def body_of(*texts: str, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}], **more}


def by_name(reply: Any) -> dict[str, Any]:
    return {output["name"]: output for output in reply.json()["outputs"]}


async def scores_of(bench: Bench, *texts: str) -> list[list[float]]:
    """The native scores, in the order of the labels."""
    rows = await bench.native("acme/spam", list(texts))
    return [[{pair["label"]: pair["score"] for pair in row["scores"]}[name] for name in LABELS] for row in rows]


LABELS = ("ham", "spam", "a:b")


async def test_scores_are_in_the_order_of_labels(bench: Bench) -> None:
    reply = await bench.post(f"{SPAM}/infer", body_of("one", "two", id="r1"))
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    head = reply.json()
    assert (head["model_name"], head["model_version"], head["id"]) == ("acme--spam", "2", "r1")
    found = by_name(reply)
    expected = await scores_of(bench, "one", "two")
    assert found["scores"]["shape"] == [2, 3]
    np.testing.assert_array_equal(np.reshape(found["scores"]["data"], (2, 3)), expected)
    assert found["label"] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [2],
        "data": [LABELS[int(np.argmax(row))] for row in expected],
    }
    assert reply.headers["x-adapter-id"] == "acme/spam"
    assert "forward;dur=" in reply.headers["server-timing"]


async def test_the_binary_form_is_read_and_answered_without_a_content_type(bench: Bench) -> None:
    data = write_elements([b"one", "naïve ☃".encode()])
    tensor = {"name": "input-0", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = await bench.post(f"{SPAM}/infer", head + data, **{"inference-header-content-length": str(len(head))})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/octet-stream")
    length = int(reply.headers["inference-header-content-length"])
    outputs = {output["name"]: output for output in json.loads(reply.content[:length])["outputs"]}
    tail = reply.content[length:]
    size = outputs["scores"]["parameters"]["binary_data_size"]
    found = np.frombuffer(tail[:size], dtype="<f4").reshape(2, 3)
    np.testing.assert_allclose(found, await scores_of(bench, "one", "naïve ☃"), rtol=1e-6)
    assert len(read_elements(tail[size:], 2, "label")) == 2


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_bodies_are_read(bench: Bench, name: str, pack: Any) -> None:
    data = write_elements([b"one"])
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"content-encoding": name, "inference-header-content-length": str(len(head))}
    assert (await bench.post(f"{SPAM}/infer", pack(head + data), **headers)).status_code == 200


async def test_a_bomb_is_413(bench: Bench) -> None:
    reply = await bench.post(f"{SPAM}/infer", gzip.compress(b" " * 5_000_000), **{"content-encoding": "gzip"})
    assert (reply.status_code, reply.json()["code"]) == (413, "BODY_TOO_LARGE")


async def test_compression_is_for_infer_alone(bench: Bench) -> None:
    packed = gzip.compress(b"{}")
    for path in ("/v2/repository/index", "/v1/classify", "/adapters/sst2"):
        assert (await bench.post(path, packed, **{"content-encoding": "gzip"})).status_code == 415


async def test_the_whole_body_may_be_one_text(bench: Bench) -> None:
    reply = await bench.post(f"{SPAM}/infer", b"free money", **{"inference-header-content-length": "0"})
    np.testing.assert_array_equal([by_name(reply)["scores"]["data"]], await scores_of(bench, "free money"))


async def test_outputs_are_those_wanted_each_in_its_form(bench: Bench) -> None:
    wanted = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "scores"}]
    reply = await bench.post(f"{SPAM}/infer", body_of("a", outputs=wanted, parameters={"binary_data_output": True}))
    length = int(reply.headers["inference-header-content-length"])
    label, scores = json.loads(reply.content[:length])["outputs"]
    assert "data" in label
    assert scores["parameters"] == {"binary_data_size": 12}


async def test_classification_names_value_index_label(bench: Bench) -> None:
    wanted = [{"name": "scores", "parameters": {"classification": 2}}]
    (found,) = (await bench.post(f"{SPAM}/infer", body_of("a", "b", "c", outputs=wanted))).json()["outputs"]
    assert (found["datatype"], found["shape"], len(found["data"])) == ("BYTES", [3, 2], 6)
    for row, scores in zip(np.reshape(found["data"], (3, 2)), await scores_of(bench, "a", "b", "c"), strict=True):
        for text, rank in zip(row, np.argsort(scores)[::-1], strict=False):
            value, index, label = text.split(":", 2)
            assert (int(index), label) == (rank, LABELS[rank])
            assert float(value) == pytest.approx(scores[rank], abs=1e-6)


async def test_more_classes_than_there_are_is_all_of_them(bench: Bench) -> None:
    wanted = [{"name": "scores", "parameters": {"classification": 9}}]
    assert (await bench.post(f"{SPAM}/infer", body_of("a", outputs=wanted))).json()["outputs"][0]["shape"] == [1, 3]


async def test_top_k_gives_labels_beside_scores(bench: Bench) -> None:
    found = by_name(await bench.post(f"{SPAM}/infer", body_of("a", "b", parameters={"top_k": 2})))
    assert (found["scores"]["shape"], found["labels"]["shape"], found["label"]["shape"]) == ([2, 2], [2, 2], [2])
    rows = await bench.native("acme/spam", ["a", "b"])
    assert found["labels"]["data"] == [pair["label"] for row in rows for pair in row["scores"][:2]]


async def test_function_to_apply_and_regression(bench: Bench) -> None:
    logits = by_name(await bench.post(f"{SPAM}/infer", body_of("a", parameters={"function_to_apply": "none"})))
    scores = np.exp(logits["scores"]["data"])
    np.testing.assert_allclose([scores / scores.sum()], await scores_of(bench, "a"), rtol=1e-5)
    tensor = {"name": "text", "shape": [1, 2], "datatype": "BYTES", "data": [["a", "b"]]}
    value = by_name(await bench.post("/v2/models/stsb/infer", {"inputs": [tensor]}))
    (expected,) = await bench.native("stsb", [{"text": "a", "text_pair": "b"}])
    assert (value["scores"]["data"], value["label"]["data"]) == ([expected["value"]], ["similarity"])


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (f"{SPAM}/versions/1/infer", {}),
        ("/v2/models/acme--spam@1/infer", {}),
        (f"{SPAM}/infer", {"parameters": {"adapter_version": 1}}),
        (f"{SPAM}/infer", {"parameters": {"adapter_version": "1"}}),
        (f"{SPAM}/infer", {"model_version": "1"}),
        (f"{SPAM}/versions/1/infer", {"parameters": {"adapter_version": 1}, "model_name": "acme--spam"}),
    ],
)
async def test_a_version_is_pinned_in_any_of_its_places(bench: Bench, path: str, more: dict[str, Any]) -> None:
    reply = await bench.post(path, body_of("a", **more))
    assert (reply.status_code, reply.json()["model_version"]) == (200, "1")


@pytest.mark.parametrize(
    ("path", "more", "headers"),
    [
        (f"{SPAM}/versions/1/infer", {"parameters": {"adapter_version": 2}}, {}),
        ("/v2/models/acme--spam@1/versions/2/infer", {}, {}),
        (f"{SPAM}/infer", {"model_name": "sst2"}, {}),
        (f"{SPAM}/infer", {"parameters": {"adapter_id": "sst2"}}, {}),
        (f"{SPAM}/infer", {}, {"x-adapter-id": "sst2"}),
    ],
)
async def test_two_different_names_are_400(
    bench: Bench, path: str, more: dict[str, Any], headers: dict[str, str]
) -> None:
    reply = await bench.post(path, body_of("a", **more), **headers)
    assert (reply.status_code, reply.json()["code"]) == (400, "CONFLICTING_ADAPTER")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (f"{SPAM}/infer", b"", 400, "MALFORMED_BODY"),
        (f"{SPAM}/infer", b"{", 400, "MALFORMED_BODY"),
        (f"{SPAM}/infer", {}, 422, "INVALID_REQUEST"),
        (f"{SPAM}/infer", body_of("a", " "), 422, "BLANK_TEXT"),
        (f"{SPAM}/infer", body_of(" "), 422, "BLANK_TEXT"),
        (f"{SPAM}/infer", body_of(*["a"] * 129), 422, "INVALID_REQUEST"),
        (f"{SPAM}/infer", body_of("x " * 500, parameters={"truncate": False}), 422, "TOO_LONG"),
        (f"{SPAM}/infer", body_of("a", outputs=[{"name": "logits"}]), 422, "INVALID_REQUEST"),
        (
            f"{SPAM}/infer",
            body_of("a", outputs=[{"name": "label", "parameters": {"classification": 1}}]),
            422,
            "INVALID_REQUEST",
        ),
        (f"{SPAM}/infer", body_of("a", parameters={"topk": 1}), 422, "INVALID_REQUEST"),
        (f"{SPAM}/versions/9/infer", body_of("a"), 404, "VERSION_NOT_FOUND"),
        (f"{SPAM}/versions/x/infer", body_of("a"), 422, "INVALID_REQUEST"),
        ("/v2/models/nope/infer", body_of("a"), 404, "ADAPTER_NOT_FOUND"),
        ("/v2/models/A/infer", body_of("a"), 422, "INVALID_REQUEST"),
        ("/v2/models/a--b--c/infer", body_of("a"), 422, "INVALID_REQUEST"),
        ("/v2/models/stsb/infer", body_of("a"), 422, "MISSING_PAIR"),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_bad_calls_have_their_status_and_one_string(
    bench: Bench, path: str, body: Any, status: int, code: str
) -> None:
    reply = await bench.post(path, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/json"
    assert isinstance(reply.json()["error"], str)


@pytest.mark.parametrize("length", ["x", "-1", "", "9" * 20, "1.5"])
async def test_a_length_that_is_none_is_400(bench: Bench, length: str) -> None:
    assert (await bench.post(f"{SPAM}/infer", b"{}", **{"inference-header-content-length": length})).status_code == 400


async def test_content_types(bench: Bench) -> None:
    body = json.dumps(body_of("a")).encode()
    for content_type in ("application/json", "application/octet-stream", "application/json; charset=utf-8"):
        assert (await bench.post(f"{SPAM}/infer", body, **{"content-type": content_type})).status_code == 200
    assert (await bench.post(f"{SPAM}/infer", body, **{"content-type": "text/plain"})).status_code == 415


async def test_the_hint_is_part_of_the_string(bench: Bench) -> None:
    reply = await bench.post("/v2/models/nope/infer", body_of("a"))
    assert reply.json()["error"] == "no adapter 'nope' Hint: did you mean sst2?"


async def test_timeout_in_microseconds_is_a_deadline(bench: Bench) -> None:
    bench.engine.gate.clear()
    started_s = time.monotonic()
    reply = await bench.post(f"{SPAM}/infer", body_of("a", parameters={"timeout": 50_000}))
    assert time.monotonic() - started_s < 5
    assert (reply.status_code, reply.json()["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_overload_is_429_with_retry_after(bench: Bench) -> None:
    async with bench.overloaded():
        reply = await bench.post(f"{SPAM}/infer", body_of(*["x"] * 100))
        assert (reply.status_code, reply.json()["code"]) == (429, "OVERLOADED")
        assert "retry-after" in reply.headers


# ---- health and metadata -------------------------------------------------------------------------------------------


async def test_health(bench: Bench) -> None:
    assert (await bench.client.get("/v2/health/live")).json() == {"live": True, "ready": True}
    assert (await bench.client.get("/v2/health/ready")).json() == {"live": True, "ready": True}


async def test_not_ready_is_503_and_still_alive(bench: Bench) -> None:
    bench.ready = False
    reply = await bench.client.get("/v2/health/ready")
    assert (reply.status_code, reply.json()["code"]) == (503, "NOT_READY")
    assert (await bench.client.get("/v2/health/live")).status_code == 200


async def test_server_and_models(bench: Bench) -> None:
    assert (await bench.client.get("/v2")).json()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_repository",
        "statistics",
    ]
    bench.adapters.staged.add("topics")
    assert (await bench.client.get("/v2/models")).json() == {"models": ["acme--spam", "sst2", "stsb"]}


async def test_metadata(bench: Bench) -> None:
    found = (await bench.client.get(SPAM)).json()
    assert (found["name"], found["versions"]) == ("acme--spam", ["1", "2"])
    assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    assert len((await bench.client.get("/v2/models/stsb")).json()["inputs"]) == 2


async def test_config_has_the_largest_batch(bench: Bench) -> None:
    found = (await bench.client.get(f"{SPAM}/config")).json()
    assert (found["max_batch_size"], found["output"][0]["dims"]) == (128, [3])
    assert found["version_policy"] == {"specific": {"versions": [2]}}


@pytest.mark.parametrize("path", [SPAM, f"{SPAM}/ready", f"{SPAM}/stats"])
async def test_what_is_read_of_a_model_may_be_of_a_version(bench: Bench, path: str) -> None:
    versioned = path.replace(SPAM, f"{SPAM}/versions/1")
    assert (await bench.client.get(versioned)).headers["x-adapter-version"] == "1"
    for unknown in (path.replace("spam", "nope"), path.replace(SPAM, f"{SPAM}/versions/7")):
        reply = await bench.client.get(unknown)
        assert (reply.status_code, type(reply.json()["error"])) == (404, str)


async def test_model_is_not_ready_where_calls_are_not_taken(bench: Bench) -> None:
    assert (await bench.client.get(f"{SPAM}/ready")).json() == {"name": "acme--spam", "ready": True}
    await bench.service.stop(grace_s=1)
    assert (await bench.client.get(f"{SPAM}/ready")).status_code == 503


# ---- statistics ----------------------------------------------------------------------------------------------------


async def test_statistics_count_calls_of_every_dialect(bench: Bench) -> None:
    await bench.post(f"{SPAM}/infer", body_of("a", "b"))
    await bench.post("/adapters/acme/spam", {"inputs": "a"})
    await bench.post("/v1/classify", {"items": [{"adapter": "acme/spam@1", "text": "a"}]})
    await bench.post(f"{SPAM}/infer", body_of(" "))
    first, second = (await bench.client.get(f"{SPAM}/stats")).json()["model_stats"]
    assert (first["name"], first["version"], first["inference_count"]) == ("acme--spam", "1", 1)
    assert (second["version"], second["inference_count"], second["execution_count"]) == ("2", 3, 2)
    stats = second["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)
    parts = sum(stats[what]["ns"] for what in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert stats["success"]["ns"] == pytest.approx(parts, abs=3)
    assert second["last_inference"] > 1.7e12


async def test_statistics_of_all_are_of_those_that_were_called(bench: Bench) -> None:
    assert (await bench.client.get("/v2/models/stats")).json() == {"model_stats": []}
    await bench.post("/v2/models/sst2/infer", body_of("a"))
    (found,) = (await bench.client.get("/v2/models/stats")).json()["model_stats"]
    assert (found["name"], found["inference_count"]) == ("sst2", 1)


async def test_a_deadline_that_passed_counts_as_a_failure(bench: Bench) -> None:
    bench.engine.gate.clear()
    await bench.post("/v2/models/sst2/infer", body_of("a", parameters={"timeout": 20_000}))
    bench.engine.gate.set()
    (found,) = (await bench.client.get("/v2/models/sst2/stats")).json()["model_stats"]
    assert found["inference_stats"]["fail"]["count"] == 1
