"""Both applications behind a real uvicorn, spoken to in bytes: what no client library would send."""

import asyncio
import json
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server import guard
from server.admin import make_admin_app
from server.schemas import MAX_BODY_BYTES
from tests.server.fakes import House
from tests.server.test_app import Bench

PATIENCE_S = 2.0
SILENCE_S = 0.2
GOOD = json.dumps({"adapter": "sst2", "inputs": "a text"}).encode()


class Wire:
    """A server on a port of its own, in the loop of the test."""

    def __init__(self, bench: Bench, port: int) -> None:
        self.bench = bench
        self.port = port

    async def say(self, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """Everything that is answered until the server closes, or falls silent after an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        hearing = asyncio.create_task(_hear(reader))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        except ConnectionError:
            pass
        finally:
            answer = await hearing
            await close(writer)
        return answer

    async def is_well(self) -> bool:
        return (await self.say(request("GET", "/healthz"))).startswith(b"HTTP/1.1 200")


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


async def _hear(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while part := await asyncio.wait_for(reader.read(65_536), SILENCE_S if answer else PATIENCE_S):
            answer += part
    except (TimeoutError, ConnectionError):
        pass
    return answer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


@pytest.fixture
async def wire(house: House) -> AsyncIterator[Wire]:
    bench = Bench()
    bench.resolver.add("sst2")
    administration = make_admin_app(house.registry)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        is_admin = scope["path"].startswith("/v1/adapters")
        await (administration if is_admin else bench.app)(scope, receive, send)

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(both, lifespan="off", log_config=None, access_log=False, http="httptools"))
    await bench.service.start()
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    wire = Wire(bench, listener.getsockname()[1])
    yield wire
    assert await wire.is_well()
    bench.engine.gate.set()
    server.should_exit = True
    await serving
    await bench.service.stop(grace_s=1)
    await bench.client.aclose()
    assert bench.engine.n_held == 0


def request(method: str, path: str, *fields: str, body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""])
    return head.encode("latin-1") + body


def statuses(answer: bytes) -> list[int]:
    """Of every reply in what came back."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def post(*fields: str, body: bytes = b"") -> bytes:
    return request("POST", "/v1/classify", *fields, body=body)


async def test_good_request_is_answered_and_keeps_the_connection(wire: Wire) -> None:
    good = post(f"Content-Length: {len(GOOD)}", body=GOOD)
    assert statuses(await wire.say(good + good)) == [200, 200]


REFUSED = {
    "length -1": (post("Content-Length: -1", body=b"x"), 400),
    "length +5": (post("Content-Length: +5", body=b"hello"), 400),
    "two lengths": (post("Content-Length: 2", "Content-Length: 3", body=b"abc"), 400),
    "length 10^18": (post(f"Content-Length: {10**18}"), 413),
    "length over the cap": (post(f"Content-Length: {MAX_BODY_BYTES + 1}"), 413),
    "length of 5000 digits": (post(f"Content-Length: {'9' * 5000}"), 400),
    "length and chunks": (post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "unknown coding": (post("Transfer-Encoding: gzip", body=b"x"), 400),
    "coding twice": (post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "coding in a list": (post("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    "bare LF": (b"POST /v1/classify HTTP/1.1\nHost: x\nContent-Length: 0\n\n", 400),
    "folded header": (post("X-Long: a", " b: c", "Content-Length: 0"), 400),
    "space before the colon": (post("Content-Length : 5", body=b"hello"), 400),
    "chunk size that overflows": (post("Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\nx\r\n"), 400),
    "chunk size that is none": (post("Transfer-Encoding: chunked", body=b"-1\r\nx\r\n0\r\n\r\n"), 400),
    "no method": (b" /v1/classify HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "two hosts": (request("GET", "/v1/info", "Host: evil.example"), 400),
    "host that is a path": (b"GET /v1/info HTTP/1.1\r\nHost: x/healthz?\r\n\r\n", 400),
    "NUL in the path": (request("GET", "/v1/adapters/%00"), 400),
    "line break in the path": (request("GET", "/v1/adapters/x%0d%0aSet-Cookie:%20x"), 400),
    "header of 16 KiB and 1": (request("GET", "/v1/info", "X: " + "y" * 16 * 1024), 431),
    "65 headers": (request("GET", "/v1/info", *["X: y"] * 64), 431),
    "URL of 5 kB": (request("GET", "/v1/info?" + "x" * 5000), 414),
    "compressed": (post("Content-Encoding: gzip", "Content-Length: 2", body=b"\x1f\x8b"), 415),
    "TRACE": (request("TRACE", "/v1/info"), 405),
    "oversized after Expect": (post("Expect: 100-continue", f"Content-Length: {MAX_BODY_BYTES + 1}"), 413),
    "multipart": (post("Content-Type: multipart/form-data; boundary=x", "Content-Length: 5", body=b"--x--"), 415),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_refused_once_and_what_follows_on_the_connection_is_never_taken_for_a_request(
    wire: Wire, sent: bytes, status: int
) -> None:
    smuggled = request("GET", "/healthz", "X-Request-Id: smuggled")
    answer = await wire.say(sent + smuggled)
    assert statuses(answer)[:1] == [status]
    if status in (400, 413) and b"%0" not in sent and b"GET" not in sent[:4]:
        assert b"smuggled" not in answer
    assert b"Traceback" not in answer
    assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"GET /\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(range(256)) * 20 + b"\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\r\n" * 5000 + b"x\r\n\r\n",
    ],
    ids=["TLS", "HTTP/0.9", "HTTP/2", "random", "zeros", "HTTP/9.9", "empty lines"],
)
async def test_what_is_no_request_of_ours_is_closed(wire: Wire, sent: bytes) -> None:
    answer = await wire.say(sent)
    assert set(statuses(answer)) <= {400, 404, 505}
    assert b"Traceback" not in answer


async def test_tls_client_is_turned_away(wire: Wire) -> None:
    context = ssl.create_default_context()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", wire.port, ssl=context, server_hostname="localhost")


async def test_url_of_a_megabyte_is_refused(wire: Wire) -> None:
    answer = await wire.say(request("GET", "/v1/info?" + "x" * 2**20))
    assert statuses(answer) in ([414], [400])


@pytest.mark.parametrize("size", [1, 1024])
async def test_endless_chunks_end_at_the_cap_in_bounded_memory(wire: Wire, size: int) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"
    per_write = 64 * 1024 // size
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    hearing = asyncio.create_task(_hear(reader))
    writer.write(post("Transfer-Encoding: chunked"))
    written = 0
    try:
        while written < 20 * MAX_BODY_BYTES and not hearing.done():
            writer.write(chunk * per_write)
            written += size * per_write
            await writer.drain()
    except ConnectionError:
        pass
    assert statuses(await hearing) in ([413], [])  # nothing where the connection was reset before it could be read
    await close(writer)
    assert written < 16 * 2**20  # what the kernel holds for both sides among it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
async def test_half_a_body_is_cut_off(wire: Wire, monkeypatch: pytest.MonkeyPatch, pause_s: float) -> None:
    monkeypatch.setattr(guard, "MAX_SILENCE_S", 0.3)
    monkeypatch.setattr(guard, "MAX_BODY_S", 0.5)
    began_s = asyncio.get_running_loop().time()
    answer = await wire.say(post("Content-Length: 100"), *[b"x"] * (10 if pause_s else 1), pause_s=pause_s)
    assert statuses(answer) == [408]
    assert b"connection: close" in answer.lower()
    assert asyncio.get_running_loop().time() - began_s < 3


async def test_healthy_clients_do_not_notice_many_half_requests(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_SILENCE_S", 1.0)
    held = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(200)]
    for number, (_, writer) in enumerate(held):
        writer.write((b"", b"POST /v1/cl", post("Content-Length: 50", body=b"{"))[number % 3])
    good = post(f"Content-Length: {len(GOOD)}", "Connection: close", body=GOOD)
    for _ in range(20):
        began_s = asyncio.get_running_loop().time()
        assert statuses(await wire.say(good)) == [200]
        assert asyncio.get_running_loop().time() - began_s < 1
    for _, writer in held:
        await close(writer)


async def test_client_that_leaves_frees_its_rows(wire: Wire) -> None:
    engine = wire.bench.engine
    engine.gate.clear()
    holder = asyncio.create_task(wire.say(post(f"Content-Length: {len(GOOD)}", body=GOOD)))
    while not engine.running.is_set():
        await asyncio.sleep(0.01)
    body = json.dumps({"adapter": "sst2", "inputs": ["left behind"] * 20}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(post(f"Content-Length: {len(body)}", body=body))
    await writer.drain()
    while engine.leases_ever < 2:
        await asyncio.sleep(0.01)
    await close(writer)
    await asyncio.sleep(0.2)
    engine.gate.set()
    assert statuses(await holder) == [200]
    for _ in range(100):
        if engine.n_held == 0:
            break
        await asyncio.sleep(0.02)
    assert engine.n_held == 0
    assert not [row for batch in engine.batches for row in batch if row.text == "left behind"]
    assert "adakron_cancelled_rows_total 20.0" in wire.bench.service.metrics.render().decode()


async def test_deadline_header_ends_a_call_that_waits(wire: Wire) -> None:
    wire.bench.engine.gate.clear()
    answer = await wire.say(post("X-Timeout-S: 0.2", f"Content-Length: {len(GOOD)}", body=GOOD))
    assert statuses(answer) == [504]


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "OPTIONS", "HEAD", "BREW", "PROPFIND"])
async def test_other_methods_of_the_admin_routes_are_405_with_allow(wire: Wire, method: str) -> None:
    for path, allowed in (("/v1/adapters", "GET"), ("/v1/adapters/x", "DELETE, GET, PUT")):
        answer = await wire.say(request(method, path, "Connection: close"))
        head: Any = answer.lower()
        assert statuses(answer) in ([405], [400])
        assert statuses(answer) == [400] or f"allow: {allowed}".lower().encode() in head
