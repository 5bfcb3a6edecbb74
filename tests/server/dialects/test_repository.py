import base64
import json
from typing import Any

import pytest

from adakron.errors import HeaderError
from server.dialects import repository
from server.errors import AdapterNotFoundError, OverloadedError, StorageFullError
from tests.server.dialects.conftest import Bench

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/acme--spam/load"
UNLOAD = "/v2/repository/models/acme--spam/unload"
FILE = "file:1/adapter_model.safetensors"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_index_lists_every_version_of_every_name(bench: Bench) -> None:
    bench.adapters.staged.add("topics")
    bench.adapters.broken[bench.resolver.versions["sst2"][1]] = "no memory left"
    for body in (b"", {}, {"ready": False}):
        reply = await bench.post(INDEX, body)
        assert [(row["name"], row["version"], row["state"]) for row in reply.json()] == [
            ("acme--spam", "1", "READY"),
            ("acme--spam", "2", "READY"),
            ("sst2", "1", "UNAVAILABLE"),
            ("stsb", "1", "READY"),
            ("topics", "1", "UNAVAILABLE"),
        ]
        assert reply.json()[2]["reason"] == "no memory left"
        assert reply.headers["x-total-count"] == "5"


async def test_index_may_be_of_what_is_ready(bench: Bench) -> None:
    bench.adapters.staged.add("topics")
    assert {row["name"] for row in (await bench.post(INDEX, {"ready": True})).json()} == {"acme--spam", "sst2", "stsb"}


async def test_index_is_bounded_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "MAX_LISTED", 2)
    reply = await bench.post(INDEX, b"")
    assert (len(reply.json()), reply.headers["x-total-count"]) == (2, "5")


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b"", None),
        ({}, None),
        ({"parameters": {"config": "{}"}}, None),
        ({"parameters": {"config": '{"version_policy": {"latest": {"num_versions": 1}}}'}}, None),
        ({"parameters": {"config": '{"name": "x", "version_policy": {"specific": {"versions": [1]}}}'}}, 1),
    ],
    ids=repr,
)
async def test_load_asks_the_admin_plane(bench: Bench, body: Any, version: int | None) -> None:
    reply = await bench.post(LOAD, body, **{"x-request-id": "mine"})
    assert (reply.status_code, reply.json()["state"]) == (200, "READY")
    assert bench.admin.calls == [("load", "acme/spam", version, True)]
    assert bench.admin.origins[0].request_id == "mine"


async def test_load_with_a_file_is_an_upload(bench: Bench) -> None:
    body = {"parameters": {"config": "{}", FILE: encoded(b"bytes")}}
    assert (await bench.post(LOAD, body)).status_code == 200
    assert bench.admin.calls == [("upload", "acme/spam", b"bytes")]


async def test_what_config_answered_may_come_back(bench: Bench) -> None:
    config = (await bench.client.get("/v2/models/acme--spam/config")).text
    assert (await bench.post(LOAD, {"parameters": {"config": config}})).status_code == 200
    assert bench.admin.calls == [("load", "acme/spam", 2, True)]


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "["},
        {"config": "[]"},
        {"config": '{"instance_group": []}'},
        {"config": '{"version_policy": {"all": {}}}'},
        {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'},
        {"config": '{"version_policy": {"specific": {"versions": ["1"]}}}'},
        {"config": '{"version_policy": {"latest": {"num_versions": 2}}}'},
        {"config": '{"version_policy": {"specific": {"versions": [1]}}}', FILE: encoded(b"x")},
        {"config": 1},
        {FILE: "YWJj*"},
        {FILE: "YWJ"},
        {FILE: "é"},
        {FILE: encoded(b"x"), "file:2/adapter_model.safetensors": encoded(b"x")},
        {"file:1/model.onnx": encoded(b"x")},
        {"file:../../etc/passwd": encoded(b"x")},
        {"path": "/etc/passwd"},
        {"lora_path": "s3://bucket/x"},
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_load_refuses_what_is_neither_a_version_nor_a_file(bench: Bench, parameters: Any) -> None:
    reply = await bench.post(LOAD, {"parameters": parameters})
    assert (reply.status_code, type(reply.json()["error"])) == (422, str)
    assert bench.admin.calls == []


async def test_load_of_what_is_no_name_is_422(bench: Bench) -> None:
    for model in ("A", "a--b--c", "acme--spam@1", "stats"):
        assert (await bench.post(f"/v2/repository/models/{model}/load", b"")).status_code == 422
    assert bench.admin.calls == []


async def test_load_takes_more_than_other_routes_and_not_everything(bench: Bench) -> None:
    body = json.dumps({"parameters": {FILE: encoded(b"x" * 2**21)}}).encode()
    assert (await bench.post(LOAD, body)).status_code == 200
    assert (await bench.post(UNLOAD, body)).status_code == 413
    assert (await bench.post(LOAD, b" " * (repository.MAX_LOAD_BYTES + 1))).status_code == 413


@pytest.mark.parametrize("body", [b"", {}, {"parameters": {"unload_dependents": False}}])
async def test_unload_asks_the_admin_plane(bench: Bench, body: Any) -> None:
    reply = await bench.post(UNLOAD, body)
    assert (reply.status_code, reply.json()["state"]) == (200, "UNAVAILABLE")
    assert bench.admin.calls == [("unload", "acme/spam")]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (AdapterNotFoundError("no adapter 'acme/spam'"), 404),
        (OverloadedError("too many changes"), 429),
        (StorageFullError("full"), 507),
        (HeaderError("header too small"), 422),
    ],
)
@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_refusals_of_the_admin_plane_are_told(bench: Bench, path: str, refusal: Any, status: int) -> None:
    bench.admin.refusal = refusal
    reply = await bench.post(path, b"")
    assert (reply.status_code, type(reply.json()["error"])) == (status, str)


@pytest.mark.parametrize("path", [INDEX, LOAD, UNLOAD])
async def test_bodies_are_strict(bench: Bench, path: str) -> None:
    assert (await bench.post(path, b"{")).status_code == 400
    assert (await bench.post(path, b'{"a": 1, "a": 1}')).status_code == 400
    assert (await bench.post(path, {"more": 1})).status_code == 422
    assert (await bench.post(path, b"{}", **{"content-type": "text/plain"})).status_code == 415
