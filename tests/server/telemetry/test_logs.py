import io
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from adakron.errors import ShapeError
from server.access.gate import Gate
from server.access.keys import Key, make_key
from server.admin import make_admin_app
from server.metrics import HttpMetrics
from server.telemetry.logs import AccessLog, LineStream, TextRenderer
from server.telemetry.logs import configure as configure_logs
from tests.server.fakes import House, tiny_adapter
from tests.server.stub_engine import config_of
from tests.server.telemetry.conftest import Configure
from tests.server.test_app import Bench

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class OneKey:
    """A ring with one key, which may do everything."""

    is_open = False

    def __init__(self) -> None:
        self.secret, self.id = make_key()

    def find(self, offered: bytes) -> Key | None:
        scopes = frozenset({"classify", "read", "admin"})
        return Key(self.id, "0" * 64, scopes, None, 0, None) if offered == self.secret.encode() else None  # type: ignore[arg-type]


@pytest.fixture
def keys() -> OneKey:
    return OneKey()


@pytest_asyncio.fixture
async def bench(keys: OneKey) -> AsyncIterator[Bench]:
    bench = Bench(Gate(keys), access=AccessLog(1.0))
    bench.resolver.add("sst2")
    bench.resolver.add("acme/topics", config_of(("secret-label-1", "secret-label-2"), "multi_label_classification"))
    await bench.service.start()
    bench.client.headers["authorization"] = f"Bearer {keys.secret}"
    async with bench.client:
        yield bench
    await bench.service.stop(grace_s=1)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


# ---- every line ----------------------------------------------------------------------------------------------------


def test_a_line_is_one_json_object_whoever_writes_it(configure: Configure) -> None:
    lines = configure()
    logging.getLogger("uvicorn.error").warning("two\nlines from %s", "a library")
    logging.getLogger("server.x").info("below the level")
    [line] = lines()
    assert (line["event"], line["level"], line["logger"], line["process"]) == (
        "two\nlines from a library",
        "warning",
        "uvicorn.error",
        "r1",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    assert "request_id" not in line


def test_configuring_again_does_not_double_the_lines(configure: Configure) -> None:
    configure()
    lines = configure()
    logging.getLogger("server.x").warning("once")
    assert len(lines()) == 1


def test_of_a_foreign_exception_the_message_is_not_written(configure: Configure) -> None:
    lines = configure()
    try:
        try:
            raise ValueError("quotes a text")
        except ValueError as inner:
            raise KeyError("quotes it too") from inner
    except KeyError:
        logging.getLogger("server.x").exception("it failed")
    shown = lines()[0]["exception"]
    assert "quotes" not in re.sub(r"raise .*", "", shown)
    assert shown.startswith("KeyError\n")
    assert "caused by ValueError\n" in shown
    assert f'File "{__file__}"' in shown


def test_of_our_own_exceptions_it_is(configure: Configure) -> None:
    lines = configure()
    logging.getLogger("server.x").warning("bad", exc_info=raised(ShapeError("head.weight: found [3]")))
    assert "ShapeError: head.weight: found [3]" in lines()[0]["exception"]


def test_debugging_shows_every_message(configure: Configure) -> None:
    lines = configure(level="DEBUG")
    logging.getLogger("server.x").warning("bad", exc_info=raised(ValueError("what it was")))
    assert "ValueError: what it was" in lines()[0]["exception"]


def test_as_text_for_a_person() -> None:
    lines: list[str] = []
    stream = io.StringIO()
    configure_before = list(logging.getLogger().handlers)
    try:
        configure_logs(stream, level="INFO", process="r1")
        logging.getLogger("server.x").info("a thing happened")
    finally:
        logging.getLogger().handlers[:] = configure_before
        logging.getLogger().setLevel(logging.WARNING)
    LineStream(lambda line: lines.append(TextRenderer(colors=False)(line))).write(stream.getvalue())
    [text] = lines
    assert "a thing happened" in text
    assert "process=r1" in text
    assert not text.startswith("{")
    assert "\x1b" not in text


def test_a_line_of_text_cannot_move_the_cursor(configure: Configure) -> None:
    line = json.dumps({"event": "request", "level": "info", "adapter": "\x1b[2J\nfake"})
    assert "\x1b" not in TextRenderer(colors=False)(line)


# ---- requests ------------------------------------------------------------------------------------------------------


async def test_a_request_has_a_line_with_what_it_was(configure: Configure, bench: Bench, keys: OneKey) -> None:
    lines = configure(access_share=1.0)
    body = {"adapter": "sst2", "inputs": ["a text", " "]}
    reply = await bench.classify(body, **{"x-request-id": "mine-7", "traceparent": TRACEPARENT})
    assert reply.headers["x-request-id"] == "mine-7"
    [line] = lines()
    times = {name: line.pop(name) for name in ("timestamp", "duration_ms", "tokenize_ms", "queue_ms", "forward_ms")}
    assert all(value >= 0 for name, value in times.items() if name != "timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "server.access",
        "process": "r1",
        "request_id": "mine-7",
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "method": "POST",
        "route": "/v1/classify",
        "status": 200,
        "adapter": "sst2@1",
        "rows": 2,
        "failed_rows": 1,
        "key_id": keys.id,
    }


async def test_several_adapters_are_a_number_and_a_refusal_has_its_code(configure: Configure, bench: Bench) -> None:
    lines = configure(access_share=1.0)
    await bench.classify({"adapters": ["sst2", "acme/topics"], "inputs": "x"})
    await bench.classify({"adapter": "nothing", "inputs": "x"})
    await bench.client.get("/nowhere/acme")
    several, unknown, nowhere = lines()
    assert (several["adapters"], several["rows"], "adapter" in several) == (2, 2, False)
    assert (unknown["status"], unknown["error"], unknown["rows"]) == (404, "ADAPTER_NOT_FOUND", 1)
    assert (nowhere["route"], nowhere["error"]) == ("other", "ROUTE_NOT_FOUND")
    made = several["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


async def test_without_access_log_only_our_own_failures_have_a_line(configure: Configure, keys: OneKey) -> None:
    lines = configure()
    bench = Bench(Gate(keys), access=AccessLog(0.0))
    bench.client.headers["authorization"] = f"Bearer {keys.secret}"
    async with bench.client:
        await bench.client.get("/healthz")
        bench.resolver.add("sst2")
        await bench.classify({"adapter": "sst2", "inputs": "x"})  # not started: 503
    [line] = lines()
    assert (line["level"], line["status"], line["error"]) == ("warning", 503, "NOT_READY")


def test_a_share_of_requests_is_logged() -> None:
    draws = iter([0.05, 0.2, 0.09])
    some = AccessLog(0.1, lambda: next(draws))
    assert [some.wants(200) for _ in range(3)] == [True, False, True]
    assert AccessLog(1.0).wants(404)
    assert not AccessLog(0.0).wants(499)
    assert AccessLog(0.0).wants(500)


async def test_lines_written_meanwhile_have_the_request_id(
    configure: Configure, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = configure()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(bench.service, "classify", fail)
    reply = await bench.classify({"adapter": "sst2", "inputs": "x"})
    assert reply.status_code == 500
    failed, access = lines()
    assert failed["request_id"] == access["request_id"] == reply.json()["error"]["request_id"]
    assert failed["logger"] == "server.error_replies"
    assert (access["status"], access["error"]) == (500, "INTERNAL")


async def test_the_admin_plane_has_them_too(configure: Configure, tmp_path: Path) -> None:
    lines = configure(access_share=1.0)
    with House.open(tmp_path) as house:
        metrics = HttpMetrics()
        app = make_admin_app(house.registry, metrics=metrics, access=AccessLog(1.0))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.put("/v1/adapters/acme/x", content=tiny_adapter(1).to_bytes())
            await client.get("/v1/adapters/")
    put, listed = lines()
    assert (put["route"], put["status"]) == ("/v1/adapters/{name:path}", 201)
    assert (listed["route"], listed["status"]) == ("/v1/adapters", 200)
    assert metrics.registry.get_sample_value("adakron_requests_total", {"route": "/v1/adapters", "code": "200"}) == 1


SECRET = "hunter2-unmistakable"


async def test_no_secret_is_ever_logged(configure: Configure, bench: Bench, keys: OneKey) -> None:
    """Secrets wherever a client can put one; every line of every logger of ours, with all requests logged."""
    lines = configure(level="INFO", access_share=1.0)
    fields = ("cookie", "x-api-key", "x-route-key", "x-timeout-s", "user-agent", "referer", "traceparent", "host")
    headers = dict.fromkeys(fields, SECRET)
    good = {"adapter": "acme/topics", "inputs": [f"text {SECRET}", {"text": SECRET, "text_pair": SECRET}]}
    bench.engine.failing_texts.add(f"text {SECRET}")
    bodies = [
        good,
        {**good, SECRET: SECRET},
        {"adapter": SECRET.upper(), "inputs": "x"},
        {"adapter": "sst2", "inputs": [SECRET] * 200},
        {"model": SECRET, "input": SECRET},
        SECRET.encode(),
        b'{"adapter": "' + SECRET.encode() + b'"',
    ]
    for body in bodies:
        for name in (*fields, None):
            await bench.classify(body, **({} if name is None else {name: headers[name]}))
    for path in (
        f"/{SECRET}",
        f"/v1/classify?key={SECRET}",
        f"/adapters/{SECRET}/predict?token={SECRET}",
        f"/v2/models/{SECRET}/infer",
    ):
        await bench.client.post(path, content=json.dumps(good))
    for authorization in (f"Bearer {SECRET}", f"Basic {SECRET}", SECRET):
        await bench.client.get("/v1/info", headers={"authorization": authorization})
    await bench.client.request(SECRET.upper(), "/v1/info")
    await bench.classify(good, **{"x-request-id": f"{SECRET} {SECRET}"})

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(SECRET) from ValueError(SECRET)

    bench.service.classify = fail  # type: ignore[method-assign,assignment]
    await bench.classify({"adapter": "sst2", "inputs": "x"})
    written = json.dumps([line for line in lines() if line["logger"] != "httpx"])  # the client of this test
    assert written.count('"request"') > 70
    assert "encoding 1 calls failed" in written
    for hidden in (SECRET, SECRET.upper(), keys.secret, "secret-label"):
        assert hidden not in written
