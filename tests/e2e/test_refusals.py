"""Bad input of every kind through HAProxy and Ray: its own 4xx, in JSON, never a 5xx, and the server lives on."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import Server, Signature

CLASSIFY = "/v1/classify"
JSON = {"content-type": "application/json"}


@pytest.fixture
def client(server: Server, make: Callable[..., Signature]) -> Iterator[httpx.Client]:
    assert server.put("refusals", make(30).adapter).status_code in (200, 201)
    with server.client() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _lives_on(client: httpx.Client) -> Iterator[None]:
    yield
    assert client.get("/healthz").status_code == 200
    assert client.post(CLASSIFY, json={"adapter": "refusals", "inputs": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe{\x00}\x00", 400),
        (b'{"adapter": "refusals", "inputs": NaN}', 400),
        (b'{"adapter": "refusals", "inputs": 1e999}', 400),
        (b'{"adapter": "refusals", "adapter": "refusals", "inputs": "x"}', 400),
        (b'{"adapter": "refusals", "inputs": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"null", 422),
        (b"{}", 422),
        (b'{"adapter": "refusals"}', 422),
        (b'{"adapter": 1, "inputs": "x"}', 422),
        (b'{"adapter": "../../etc/passwd", "inputs": "x"}', 422),
        (b'{"adapter": "refusals", "inputs": []}', 422),
        (b'{"adapter": "refusals", "inputs": [1]}', 422),
        (b'{"adapter": "refusals", "inputs": "x", "extra": 1}', 422),
        (b'{"adapter": "refusals", "inputs": "x", "top_k": 0}', 422),
        (b'{"adapter": "refusals", "inputs": " "}', 422),
        (b'{"adapter": "refusals", "inputs": {"text": "x", "text_pair": "y"}}', 422),
        (json.dumps({"adapter": "refusals", "inputs": ["x"] * 129}).encode(), 422),
        (json.dumps({"adapter": "refusals", "inputs": "x" * 20_001}).encode(), 422),
        (b'{"adapter": "refusal", "inputs": "x"}', 404),
        (b'{"adapter": "refusals@9", "inputs": "x"}', 404),
        (json.dumps({"adapter": "refusals", "inputs": "x" * 2**20}).encode(), 413),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bad_body_answers_its_status(client: httpx.Client, body: bytes, status: int) -> None:
    reply = client.post(CLASSIFY, content=body, headers=JSON)
    assert reply.status_code == status
    assert reply.json()["error"]["code"]
    assert reply.headers["x-request-id"] == reply.json()["error"]["request_id"]
    assert len(reply.content) <= 4096


def test_chunked_body_over_the_cap_answers_413(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 2**16

    assert client.post(CLASSIFY, content=chunks(), headers=JSON).status_code == 413


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_other_content_type_answers_415(client: httpx.Client, content_type: str) -> None:
    reply = client.post(CLASSIFY, content=b"{}", headers={"content-type": content_type})
    assert reply.status_code == 415


def test_compressed_body_answers_415(client: httpx.Client) -> None:
    assert client.post(CLASSIFY, content=b"{}", headers={**JSON, "content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_method_answers_405(client: httpx.Client, method: str) -> None:
    reply = client.request(method, CLASSIFY)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1/adaptersX", "/v2/nope"])
def test_unknown_route_answers_404_in_json(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 404
    assert "json" in reply.headers["content-type"]


def test_too_many_headers_answer_431(client: httpx.Client) -> None:
    headers = {f"x-{n}": "1" for n in range(70)}
    assert client.get("/v1/info", headers=headers).status_code == 431


def test_too_long_a_header_answers_431(client: httpx.Client) -> None:
    assert client.get("/v1/info", headers={"x-long": "x" * 17_000}).status_code == 431


def test_too_long_a_path_answers_414(client: httpx.Client) -> None:
    assert client.get("/v1/adapters/" + "x" * 5000).status_code == 414


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/v1/adapters/UP", {}, 422),
        ("GET", "/v1/adapters/a/b/c", {}, 422),
        ("GET", "/v1/adapters/unknown", {}, 404),
        ("GET", "/v1/adapters?limit=0", {}, 422),
        ("PUT", "/v1/adapters/x", {"content": b""}, 422),
        ("PUT", "/v1/adapters/x", {"content": b"\x80\x04junk" * 100}, 422),
        ("PUT", "/v1/adapters/x", {"content": b"x", "headers": JSON}, 415),
        ("PUT", "/v1/adapters/x?activat=false", {"content": b"x"}, 422),
        ("PUT", "/v1/adapters/activate", {"content": b"x"}, 422),
        ("POST", "/v1/adapters/refusals/activate", {"json": {"version": 9}}, 404),
        ("POST", "/v1/adapters/refusals/activate", {"json": {"version": "1"}}, 422),
        ("POST", "/v1/adapters/refusals/activate", {"content": b"{"}, 400),
        ("DELETE", "/v1/adapters/refusals?version=1", {}, 409),
        ("DELETE", "/v1/adapters/refusals", {"headers": {"if-match": '"99999"'}}, 412),
        ("DELETE", "/v1/adapters/unknown", {}, 404),
        ("PATCH", "/v1/adapters/refusals", {}, 405),
        ("POST", "/v1/adapters", {}, 405),
    ],
)
def test_bad_admin_call_answers_its_status(
    client: httpx.Client, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    reply = client.request(method, path, **options)
    assert reply.status_code == status
    assert reply.json()["error"]["code"]


def test_upload_over_the_cap_answers_413(client: httpx.Client, server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b"x" * 2**20

    with server.client() as other:
        reply = other.put("/v1/adapters/x", content=chunks())
    assert reply.status_code == 413
    assert list((server.state_dir / "blobs" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "request_bytes",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"],
)
def test_what_is_no_http_is_refused(server: Server, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=35) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_header_of_ray_for_multiplexing_changes_nothing(client: httpx.Client) -> None:
    reply = client.post(
        CLASSIFY, json={"adapter": "refusals", "inputs": "x"}, headers={"serve_multiplexed_model_id": "other"}
    )
    assert reply.status_code == 200
