import asyncio
import json
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server import guard
from server.guard import Guard

CAP = 1000
Field = tuple[bytes, bytes]


async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(str(len(body)))(scope, receive, send)


async def deaf_app(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("no body wanted")(scope, receive, send)


class Exchange:
    """One request through the guard; counts the messages that were read."""

    def __init__(self, chunks: Sequence[bytes] = (b"",), headers: Sequence[Field] = (), path: str = "/v1/x") -> None:
        self.chunks = list(chunks)
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": list(headers),
        }
        self.n_read = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        body = self.chunks[self.n_read]
        self.n_read += 1
        return {"type": "http.request", "body": body, "more_body": self.n_read < len(self.chunks)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, app: object = reading_app) -> "Exchange":
        await Guard(app, max_body_bytes=CAP)(self.scope, self.receive, self.send)  # type: ignore[arg-type]
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


CHUNKED = (b"transfer-encoding", b"chunked")


def length(n_bytes: int) -> Field:
    return (b"content-length", str(n_bytes).encode())


async def test_a_body_of_the_cap_passes() -> None:
    exchange = await Exchange([b"x" * CAP], [length(CAP)]).through()
    assert (exchange.status, exchange.body) == (200, b"1000")


async def test_a_declared_body_over_the_cap_is_413_before_a_byte_is_read() -> None:
    exchange = await Exchange([b"x" * 100] * 1000, [length(100_000)]).through()
    assert exchange.status == 413
    assert exchange.n_read == 0


async def test_a_little_that_nobody_read_is_read_past_and_keeps_the_connection() -> None:
    for exchange in (
        Exchange([b"x" * (CAP + 1)], [length(CAP + 1)]),
        Exchange([b"x" * 400] * 3, [CHUNKED]),
        Exchange([b"x"] * 65, [CHUNKED, *[(b"x", b"y")] * 64]),
    ):
        await exchange.through()
        assert exchange.status in (413, 431)
        assert exchange.n_read == len(exchange.chunks)
        assert b"connection" not in exchange.headers


async def test_who_waits_to_be_told_to_send_is_not_told() -> None:
    expecting = Exchange([b"x" * (CAP + 1)], [length(CAP + 1), (b"expect", b"100-continue")])
    await expecting.through()
    assert (expecting.status, expecting.n_read, expecting.headers[b"connection"]) == (413, 0, b"close")


async def test_reading_past_gives_up_on_much_and_on_what_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    much = await Exchange([b"x" * 1000] * 1000, [CHUNKED]).through(deaf_app)
    assert much.headers[b"connection"] == b"close"
    assert much.n_read < 70
    monkeypatch.setattr(guard, "SKIPPED_WITHIN_S", 0.05)
    slow = Slow([b"x"] * 100, [CHUNKED])
    slow.pause_s = 0.03
    await slow.through(deaf_app)
    assert slow.headers[b"connection"] == b"close"


async def test_a_chunked_body_over_the_cap_is_413_and_no_more_is_read() -> None:
    exchange = await Exchange([b"x" * 400] * 1000, [CHUNKED, (b"expect", b"100-continue")]).through()
    assert exchange.status == 413
    assert exchange.n_read == 3


async def test_a_chunked_body_of_one_byte_pieces_is_counted() -> None:
    assert (await Exchange([b"x"] * CAP, [CHUNKED]).through()).status == 200
    assert (await Exchange([b"x"] * (CAP + 1), [CHUNKED]).through()).status == 413


async def test_a_body_longer_than_declared_is_still_capped() -> None:
    assert (await Exchange([b"x" * 600] * 2, [length(10)]).through()).status == 413


@pytest.mark.parametrize("declared", [b"1" + b"0" * 18, b"9" * 5000])
async def test_an_absurd_length_is_413(declared: bytes) -> None:
    assert (await Exchange([b""], [(b"content-length", declared)]).through()).status == 413


@pytest.mark.parametrize("declared", [b"-1", b"+5", b"1.0", b"", b"0x10", b"1e3", b"1, 1"])
async def test_a_length_that_is_none_is_400(declared: bytes) -> None:
    assert (await Exchange([b""], [(b"content-length", declared)]).through()).status == 400


async def test_two_different_lengths_are_400() -> None:
    assert (await Exchange([b"xx"], [length(2), length(3)]).through()).status == 400


async def test_header_bytes_are_capped_at_16_kib() -> None:
    assert (await Exchange(headers=[(b"x", b"y" * (16 * 1024 - 1))]).through()).status == 200
    assert (await Exchange(headers=[(b"x", b"y" * (16 * 1024))]).through()).status == 431


async def test_header_fields_are_capped_at_64() -> None:
    assert (await Exchange(headers=[(b"x", b"y")] * 64).through()).status == 200
    assert (await Exchange(headers=[(b"x", b"y")] * 65).through()).status == 431


async def test_path_and_query_are_capped_at_4_kib() -> None:
    assert (await Exchange(path="/" + "x" * 4095).through()).status == 200
    assert (await Exchange(path="/" + "x" * 4096).through()).status == 414
    exchange = Exchange()
    exchange.scope["query_string"] = b"x" * 4096
    assert (await exchange.through()).status == 414


@pytest.mark.parametrize("path", ["/a\x00b", "/a\r\nb", "/a\n", "/\x1b[31m", "/a\x7f", "/a\tb"])
async def test_a_control_character_in_the_path_is_400(path: str) -> None:
    assert (await Exchange(path=path).through()).status == 400


@pytest.mark.parametrize("host", [b"test", b"a-b.example.org:8000", b"127.0.0.1:1", b"[::1]:8000", b"my_service"])
async def test_a_host_passes(host: bytes) -> None:
    assert (await Exchange(headers=[(b"host", host)]).through()).status == 200


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a b",
        b"a/b",
        b"a?b",
        b"a#b",
        b"a@b",
        b"user:secret@a",
        b"a:b",
        b"a:123456",
        b"a,b",
        b"a\\b",
        b"http://a",
        b"[::1",
        b"::1]",
        b"[x]",
        b"a\x00",
        b"a\r\nx: y",
        b"\xc3\xa9.example",
        b"%61",
        b"a%00b",
        b"a;b",
        b"'a'",
        b"<a>",
        b"a" * 300,
        b"a:80:80",
        b"/healthz",
        b"a\t",
        b" a",
        b"a ",
        b"*",
    ],
)
async def test_a_host_that_is_none_is_400(host: bytes) -> None:
    assert (await Exchange(headers=[(b"host", host)]).through()).status == 400


async def test_two_hosts_are_400() -> None:
    assert (await Exchange(headers=[(b"host", b"a"), (b"host", b"a")]).through()).status == 400


@pytest.mark.parametrize(
    "framing",
    [
        [(b"transfer-encoding", b"gzip")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked, chunked")],
        [CHUNKED, CHUNKED],
        [(b"transfer-encoding", b"xchunked")],
        [CHUNKED, length(5)],
    ],
)
async def test_a_body_that_is_framed_in_two_ways_or_an_unknown_one_is_400(framing: list[Field]) -> None:
    exchange = await Exchange([b"x"], framing).through()
    assert exchange.status == 400


class Slow(Exchange):
    """Each piece of the body comes after a pause."""

    pause_s = 0.0

    async def receive(self) -> Message:
        await asyncio.sleep(self.pause_s)
        return await super().receive()


async def test_a_body_that_stops_is_408_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_SILENCE_S", 0.05)
    slow = Slow([b"x", b"y"], [CHUNKED])
    slow.pause_s = 5.0
    await slow.through()
    assert (slow.status, slow.headers[b"connection"]) == (408, b"close")


async def test_a_body_that_trickles_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_S", 0.1)
    slow = Slow([b"x"] * 900, [CHUNKED])
    slow.pause_s = 0.02
    await slow.through()
    assert slow.status == 408
    assert slow.n_read < 20


async def test_a_long_body_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_S", 0.05)
    monkeypatch.setattr(guard, "LEAST_BYTES_PER_S", 100)
    slow = Slow([b"x" * 50] * 8, [CHUNKED])
    slow.pause_s = 0.02
    assert (await slow.through()).status == 200


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate", b"identity, gzip"])
async def test_a_content_encoding_is_415(encoding: bytes) -> None:
    exchange = await Exchange([b"x"], [length(1), (b"content-encoding", encoding)]).through()
    assert exchange.status == 415


async def test_the_identity_encoding_passes() -> None:
    assert (await Exchange([b"x"], [length(1), (b"content-encoding", b"identity")]).through()).status == 200


@pytest.mark.parametrize(
    "name", [b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"Serve_Multiplexed_Model_Id"]
)
async def test_rays_multiplexing_header_is_dropped(name: bytes) -> None:
    seen: list[Field] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await deaf_app(scope, receive, send)

    await Exchange(headers=[(name, b"x"), (b"kept", b"y")]).through(app)
    assert seen == [(b"kept", b"y")]


async def test_a_reply_before_the_end_of_the_body_closes_the_connection() -> None:
    exchange = await Exchange([b"x" * 100_000] * 10, [CHUNKED]).through(deaf_app)
    assert exchange.headers[b"connection"] == b"close"
    exchange = await Exchange([b"x" * 100_000] * 10, [length(1_000_000)]).through()
    assert exchange.headers[b"connection"] == b"close"


async def test_a_reply_after_the_end_of_the_body_keeps_it() -> None:
    for exchange in (Exchange([b"x"], [length(1)]), Exchange([b"x", b"y"], [CHUNKED]), Exchange()):
        assert b"connection" not in (await exchange.through()).headers


async def test_a_request_without_body_keeps_the_connection() -> None:
    assert b"connection" not in (await Exchange().through(deaf_app)).headers
    assert b"connection" not in (await Exchange(headers=[length(0)]).through(deaf_app)).headers


async def test_refusals_are_rendered_like_other_errors() -> None:
    exchange = await Exchange(headers=[(b"x-request-id", b"mine")] * 65).through()
    error = json.loads(exchange.body)["error"]
    assert (error["code"], error["request_id"]) == ("HEADERS_TOO_LARGE", "mine")
    assert exchange.headers[b"x-request-id"] == b"mine"
    exchange = await Exchange([b""], [length(CAP + 1)], path="/elsewhere").through()
    assert exchange.headers[b"content-type"] == b"application/problem+json"


async def test_other_protocols_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    exchange = Exchange()
    await Guard(app, max_body_bytes=CAP)({"type": "lifespan"}, exchange.receive, exchange.send)
    assert seen == ["lifespan"]
