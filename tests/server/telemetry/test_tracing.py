"""Spans of real requests through the real application, into memory and over the wire to an OTLP receiver."""

import ast
import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from server.admin import make_admin_app
from server.metrics import HttpMetrics
from server.telemetry.environment import TracingError, check_exporters, open_tracing, wanted_exporters
from server.telemetry.logs import AccessLog
from server.telemetry.tracing import Tracing
from tests.server.fakes import House, tiny_adapter
from tests.server.stub_engine import config_of
from tests.server.telemetry.conftest import Configure
from tests.server.test_app import Bench

pytestmark = pytest.mark.timeout(60)

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-00"
GOOD = {"adapter": "sst2", "inputs": ["a fine text", "another"]}
STAGES = ["adakron.resolve", "adakron.tokenize", "adakron.queue", "adakron.forward"]


class Traced:
    """An application whose spans are kept in memory."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.bench = Bench(access=AccessLog(1.0), tracing=Tracing(provider))
        self.bench.resolver.add("sst2")
        self.bench.resolver.add("acme/topics", config_of(("secret-label",), "multi_label_classification"))

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.name == name]

    def requests(self) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.kind == SpanKind.SERVER]


@pytest_asyncio.fixture
async def traced() -> AsyncIterator[Traced]:
    traced = Traced()
    await traced.bench.service.start()
    async with traced.bench.client:
        yield traced
    traced.bench.engine.gate.set()
    await traced.bench.service.stop(grace_s=1)


def children(spans: list[ReadableSpan], parent: ReadableSpan) -> list[ReadableSpan]:
    own = parent.context.span_id
    return sorted((s for s in spans if s.parent and s.parent.span_id == own), key=lambda s: (s.start_time, s.end_time))


# ---- structure -----------------------------------------------------------------------------------------------------


async def test_a_request_is_a_span_with_its_stages_in_the_trace_of_its_caller(traced: Traced) -> None:
    reply = await traced.bench.classify(GOOD, traceparent=SAMPLED, tracestate="vendor=1")
    assert reply.status_code == 200
    [request] = traced.requests()
    assert request.name == "POST /v1/classify"
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == PARENT_ID
    assert request.context.trace_state["vendor"] == "1"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "adakron.adapter": "sst2@1",
        "adakron.adapters": 1,
        "adakron.rows": 2,
        "adakron.failed_rows": 0,
    }
    assert request.status.status_code == StatusCode.UNSET
    stages = children(traced.spans(), request)
    assert sorted(span.name for span in stages) == sorted(STAGES)
    by_name = {span.name: span for span in stages}
    order = [by_name[name] for name in STAGES]
    assert all(before.end_time <= after.start_time + 10_000 for before, after in itertools.pairwise(order[1:]))
    assert all(span.context.trace_id == request.context.trace_id for span in stages)
    margin_ns = 5_000_000  # two clocks
    assert request.start_time - margin_ns <= min(span.start_time for span in stages)
    assert max(span.end_time for span in stages) <= request.end_time + margin_ns
    assert reply.headers["traceresponse"] == f"00-{TRACE_ID}-{request.context.span_id:016x}-01"


async def test_a_batch_is_linked_to_every_request_in_it_and_they_to_it(traced: Traced) -> None:
    engine = traced.bench.engine
    engine.gate.clear()
    first = asyncio.create_task(traced.bench.classify(GOOD))
    await asyncio.to_thread(engine.running.wait, 10)
    others = [
        asyncio.create_task(traced.bench.classify({"adapter": name, "inputs": "x"})) for name in ("sst2", "acme/topics")
    ]
    while traced.bench.service.metrics.registry.get_sample_value("adakron_queue_rows") != 2:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    engine.gate.set()
    await asyncio.gather(first, *others)
    requests = {span.context.span_id: span for span in traced.requests()}
    assert len({span.context.trace_id for span in requests.values()}) == 3
    alone, together = sorted(traced.named("adakron.batch"), key=lambda span: span.start_time)
    assert (len(alone.links), len(together.links)) == (1, 2)
    assert dict(together.attributes) == {"adakron.rows": 2, "adakron.tokens": 6, "adakron.adapters": 2}
    assert together.parent is None
    for batch in (alone, together):
        assert batch.context.trace_id not in {span.context.trace_id for span in requests.values()}
        for link in batch.links:
            [forward] = [
                span
                for span in children(traced.spans(), requests[link.context.span_id])
                if span.name == "adakron.forward"
            ]
            assert [back.context.span_id for back in forward.links] == [batch.context.span_id]


async def test_a_request_in_several_batches_is_linked_to_each(traced: Traced) -> None:
    await traced.bench.classify({"adapter": "sst2", "inputs": ["word " * 120] * 12})
    batches = traced.named("adakron.batch")
    [forward] = traced.named("adakron.forward")
    assert len(batches) == 2
    assert {link.context.span_id for link in forward.links} == {batch.context.span_id for batch in batches}


async def test_a_fault_in_tracing_fails_no_request(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("planted")

    for part in ("batch", "stages"):
        monkeypatch.setattr(Tracing, part, fail)
        assert (await traced.bench.classify(GOOD)).status_code == 200


# ---- errors --------------------------------------------------------------------------------------------------------


async def test_what_fails_in_the_engine_is_an_error_in_every_span_of_it(traced: Traced) -> None:
    traced.bench.engine.failing.add(traced.bench.resolver.versions["sst2"][1])
    reply = await traced.bench.classify(GOOD)
    assert reply.status_code == 503
    for span, code in (
        (traced.requests()[0], "ENGINE_FAILED"),
        (traced.named("adakron.forward")[0], "ENGINE_FAILED"),
        (traced.named("adakron.batch")[0], "ValueError"),
    ):
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, code)
        assert span.status.description is None
        assert not span.events, "an exception's message may quote a text"


async def test_what_the_client_did_wrong_is_no_error_of_ours(traced: Traced) -> None:
    await traced.bench.classify({"adapter": "nothing", "inputs": "x"})
    [request] = traced.requests()
    assert (request.status.status_code, request.attributes["error.type"]) == (StatusCode.UNSET, "ADAPTER_NOT_FOUND")
    [resolve] = traced.named("adakron.resolve")
    assert resolve.attributes["error.type"] == "ADAPTER_NOT_FOUND"


async def test_a_deadline_that_passes_is_an_error_where_it_passed(traced: Traced) -> None:
    engine = traced.bench.engine
    engine.gate.clear()
    first = asyncio.create_task(traced.bench.classify(GOOD))
    await asyncio.to_thread(engine.running.wait, 10)
    reply = await traced.bench.classify(GOOD, **{"x-timeout-s": "0.05"})
    assert reply.status_code == 504
    late = next(span for span in traced.requests() if span.attributes["http.response.status_code"] == 504)
    *_, last = children(traced.spans(), late)
    assert (last.name, last.attributes["error.type"]) == ("adakron.queue", "ABANDONED")
    assert (late.status.status_code, late.attributes["error.type"]) == (StatusCode.ERROR, "DEADLINE_EXCEEDED")
    engine.gate.set()
    await first


async def test_texts_that_cannot_be_tokenised_end_there(traced: Traced) -> None:
    traced.bench.engine.failing_texts.add("bad")
    await traced.bench.classify({"adapter": "sst2", "inputs": "bad"})
    names = [span.name for span in children(traced.spans(), traced.requests()[0])]
    assert names[:2] == ["adakron.resolve", "adakron.tokenize"]
    assert "adakron.forward" not in names
    assert not traced.named("adakron.batch")


async def test_an_unknown_path_has_no_route_and_shows_nothing_of_itself(traced: Traced) -> None:
    await traced.bench.client.request("BREW", "/secret/path?key=secret")
    [span] = traced.requests()
    assert span.name == "other"
    assert "secret" not in span.to_json()


# ---- what is sampled -----------------------------------------------------------------------------------------------


async def test_the_callers_decision_holds(traced: Traced) -> None:
    reply = await traced.bench.classify(GOOD, traceparent=UNSAMPLED)
    assert traced.spans() == []
    assert reply.headers["traceresponse"].startswith(f"00-{TRACE_ID}-")
    assert reply.headers["traceresponse"].endswith("-00")


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}-01"])
async def test_no_good_parent_begins_a_trace_of_its_own(traced: Traced, header: str) -> None:
    await traced.bench.classify(GOOD, **({"traceparent": header} if header else {}))
    [request] = traced.requests()
    assert request.parent is None
    assert f"{request.context.trace_id:032x}" != TRACE_ID


async def test_a_batch_is_recorded_for_those_that_are_and_links_to_no_other() -> None:
    traced = Traced(ParentBased(ALWAYS_OFF))
    bench = traced.bench
    await bench.service.start()
    bench.engine.encode_gate.clear()
    calls = [asyncio.create_task(bench.classify(GOOD, traceparent=parent)) for parent in (SAMPLED, UNSAMPLED)]
    calls.append(asyncio.create_task(bench.classify(GOOD)))
    await asyncio.sleep(0.05)
    bench.engine.encode_gate.set()
    await asyncio.gather(*calls)
    assert len(traced.requests()) == 1
    batches = traced.named("adakron.batch")
    assert [[f"{link.context.trace_id:032x}" for link in batch.links] for batch in batches] == [[TRACE_ID]]
    await bench.service.stop(grace_s=1)


async def test_a_share_of_requests() -> None:
    traced = Traced(ParentBased(TraceIdRatioBased(0.0)))
    await traced.bench.service.start()
    for _ in range(5):
        await traced.bench.classify(GOOD)
    assert traced.spans() == []
    await traced.bench.service.stop(grace_s=1)


async def test_what_watches_the_server_is_not_traced(traced: Traced) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live"):
        reply = await traced.bench.client.get(path)
        assert "traceresponse" not in reply.headers
    assert traced.spans() == []


# ---- elsewhere -----------------------------------------------------------------------------------------------------


async def test_dialects_and_the_admin_plane_have_them(traced: Traced, tmp_path: Path) -> None:
    await traced.bench.client.post("/v2/models/sst2/infer", json={"inputs": []})
    assert traced.requests()[-1].name == "POST /v2/models/{model}/infer"
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter := InMemorySpanExporter()))
    with House.open(tmp_path) as house:
        app = make_admin_app(house.registry, metrics=HttpMetrics(), tracing=Tracing(provider))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.put("/v1/adapters/acme/x", content=tiny_adapter(1).to_bytes())
    assert [span.name for span in exporter.get_finished_spans()] == ["PUT /v1/adapters/{name:path}"]


async def test_logs_have_the_ids_of_the_span(traced: Traced, configure: Configure) -> None:
    lines = configure(access_share=1.0)
    await traced.bench.classify(GOOD, traceparent=SAMPLED)
    [request] = traced.requests()
    [line] = [line for line in lines() if line["event"] == "request"]
    assert (line["trace_id"], line["span_id"]) == (TRACE_ID, f"{request.context.span_id:016x}")


async def test_no_text_label_or_key_is_in_any_span(traced: Traced) -> None:
    secret = "hunter2-unmistakable"
    headers = dict.fromkeys(("authorization", "cookie", "x-route-key", "tracestate", "user-agent"), secret)
    traced.bench.engine.failing_texts.add(secret)
    for body in ({"adapter": "acme/topics", "inputs": [secret, "fine"]}, {"adapter": secret.upper(), "inputs": secret}):
        await traced.bench.classify(body, traceparent=SAMPLED, **headers)
    await traced.bench.client.post(f"/adapters/{secret}/predict?token={secret}", json={"inputs": secret})
    written = "".join(span.to_json() for span in traced.spans())
    assert len(traced.requests()) == 3
    for hidden in (secret, secret.upper(), "secret-label"):
        assert hidden not in written


# ---- what is asked for, and the wire -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "x"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("otlp_proto_grpc",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ("otlp_proto_http", "console")),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, ()),
    ],
)
def test_the_standard_variables_say_what_is_wanted(environment: dict[str, str], exporters: tuple[str, ...]) -> None:
    assert wanted_exporters(environment) == exporters


def test_an_exporter_that_is_not_installed_is_named_with_the_cure() -> None:
    check_exporters(("otlp_proto_http", "console"))
    with pytest.raises(TracingError, match=r"'jaeger'.*pip install 'adakron\[telemetry\]'"):
        check_exporters(("otlp_proto_http", "jaeger"))


def test_nothing_is_made_where_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert open_tracing("r1") is None


def test_opentelemetry_is_imported_in_one_file_and_that_one_when_it_is_wanted(project_dir: Path) -> None:
    """What is imported when a module is: not in functions, nor for types alone."""
    for path in (project_dir / "server").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = {
            name
            for node in body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        found = {name for name in names if name.startswith(("opentelemetry", "server.telemetry.tracing"))}
        assert not found or path.name == "tracing.py", path


class Receiver:
    """An OTLP/HTTP collector of one's own."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, dict[str, str], bytes]] = []
        received = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((self.path, dict(self.headers), body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


async def test_spans_reach_a_collector(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    tracing = open_tracing("r1")
    assert tracing is not None
    bench = Bench(tracing=tracing)
    bench.resolver.add("sst2")
    await bench.service.start()
    await bench.classify(GOOD, traceparent=SAMPLED)
    await bench.service.stop(grace_s=1)
    await asyncio.to_thread(tracing.close)
    tracing._provider.shutdown()
    [(path, headers, body)] = receiver.bodies
    assert path == "/v1/traces"
    assert headers["x-tenant"] == "acme"
    message = ExportTraceServiceRequest.FromString(body)
    [resource] = message.resource_spans
    facts = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert (facts["service.name"], facts["service.instance.id"]) == ("adakron-server", "r1")
    assert facts["deployment.environment"] == "test"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted(["POST /v1/classify", "adakron.batch", *STAGES])
    assert TRACE_ID in {span.trace_id.hex() for span in spans}


async def test_a_collector_that_is_away_delays_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = open_tracing("r1")
    assert tracing is not None
    assert tracing._provider.resource.attributes["service.name"] == "mine"
    bench = Bench(tracing=tracing)
    bench.resolver.add("sst2")
    await bench.service.start()
    assert (await bench.classify(GOOD)).status_code == 200
    await bench.service.stop(grace_s=1)
    await asyncio.to_thread(tracing.close)
