"""Traces with OpenTelemetry: a span for each request, and one for each batch, linked to each other both ways.

    POST /v1/classify          server span: one a request, in the trace that its traceparent names, or in a new one
      adakron.resolve          names to leased versions, weights read
      adakron.tokenize         waiting for the tokenizer, and its work
      adakron.queue            waiting for a batch, and for the adapter where it was not on the device
      adakron.forward          from its first batch to its last                          -- link --> adakron.batch
    adakron.batch              root of a trace of its own: one run of the engine         -- link --> each request

A batch belongs to many requests and is the child of none. It is recorded where one of them is. Attributes are numbers,
codes, routes and names of adapters: never a text, a label, a key, a path or a query. The spans of the stages are made
when the call is over, from times that are taken anyway, so that a request that is not sampled costs next to nothing.
Made only where traces are wanted (`server.telemetry.environment`); the rest of the server holds None in its place.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import adakron
from server.access.gate import PUBLIC
from server.errors import ServerError
from server.telemetry.notes import current_notes, method_of, route_of

if TYPE_CHECKING:
    from server.submission import Submission

# Asked for every few seconds by what watches the server, and nothing to learn from.
UNTRACED = PUBLIC | {"/metrics"}
FLUSH_WITHIN_MS = 3000
_BATCH = "adakron.batch"
_W3C = TraceContextTextMapPropagator()
_S = 1_000_000_000


class SampledAsLinked(Sampler):
    """A batch is recorded where a request in it is; everything else as `others` decides."""

    def __init__(self, others: Sampler) -> None:
        self._others = others

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """As `Sampler.should_sample`."""
        if name == _BATCH:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._others.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """As `Sampler.get_description`."""
        return f"SampledAsLinked({self._others.get_description()})"


class BatchSpan:
    """Context manager around one run of the engine."""

    def __init__(self, span: Span, submissions: Sequence["Submission"]) -> None:
        self._span = span
        self._submissions = submissions

    def __enter__(self) -> "BatchSpan":
        context = self._span.get_span_context()
        for submission in self._submissions:
            submission.batches = [*(submission.batches or ()), context]
        return self

    def __exit__(self, *exception: object) -> None:
        self._span.end()

    def fail(self, error: Exception) -> None:
        """The engine raised this."""
        _fail(self._span, type(error).__name__)


class Tracing:
    """The spans of one process. Any thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        provider.sampler = SampledAsLinked(provider.sampler)
        self._tracer = provider.get_tracer("adakron", adakron.__version__)

    @classmethod
    def exporting(cls, exporters: Sequence[SpanExporter], process: str) -> "Tracing":
        """With the sampler, limits and resource that OTEL_* variables ask for. process: the id of a replica."""
        provider = TracerProvider(resource=_resource(process))
        for exporter in exporters:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def close(self) -> None:
        """Send what was not sent yet; blocks for FLUSH_WITHIN_MS at most, and then what is left is lost."""
        self._provider.force_flush(FLUSH_WITHIN_MS)

    def begin_request(self, scope: Scope) -> tuple[Span, Context]:
        """The server span of a request, in the trace that it names."""
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = _W3C.extract(carrier, Context()) if "traceparent" in carrier else Context()
        attributes = {"http.request.method": method_of(scope), "url.scheme": scope.get("scheme", "http")}
        span = self._tracer.start_span(method_of(scope), parent, SpanKind.SERVER, attributes)
        return span, trace.set_span_in_context(span, parent)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A part of the request that is being answered."""
        span = self._tracer.start_span(name)
        try:
            yield
        except ServerError as error:
            _fail(span, error.code)
            raise
        finally:
            span.end()

    def current(self) -> SpanContext | None:
        """The span of the request that is being answered, if it is recorded."""
        span = trace.get_current_span()
        return span.get_span_context() if span.is_recording() else None

    def batch(self, submissions: Sequence["Submission"], *, rows: int, tokens: int, adapters: int) -> BatchSpan | None:
        """The span of a batch, linked to the requests in it that are recorded; None where none is."""
        traced = [call for call in dict.fromkeys(submissions) if call.span is not None]
        if not traced:
            return None
        links = [Link(call.span) for call in traced if call.span is not None]
        attributes = {"adakron.rows": rows, "adakron.tokens": tokens, "adakron.adapters": adapters}
        span = self._tracer.start_span(_BATCH, Context(), attributes=attributes, links=links)
        return BatchSpan(span, traced)

    def stages(self, call: "Submission") -> None:
        """The spans of a call that is over, whatever became of it."""
        if call.span is None:
            return
        parent = trace.set_span_in_context(NonRecordingSpan(call.span))
        epoch_s = time.time() - time.monotonic()

        def record(
            name: str, begin_s: float, end_s: float, error: str | None, links: Sequence[SpanContext] = ()
        ) -> None:
            attributes = {"adakron.rows": len(call.rows)}
            begin_ns, end_ns = (int((at_s + epoch_s) * _S) for at_s in (begin_s, end_s))
            linked = [Link(context) for context in links]
            span = self._tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, linked, begin_ns)
            if error is not None:
                _fail(span, error)
            span.end(end_ns)

        now_s, error = time.monotonic(), _error_of(call)
        if call.encoded_s == call.arrived_s:
            record("adakron.tokenize", call.arrived_s, now_s, error)
            return
        record("adakron.tokenize", call.arrived_s, call.encoded_s, None)
        if call.batches:
            record("adakron.queue", call.encoded_s, call.started_s, None)
            record("adakron.forward", call.started_s, call.finished_s, error, call.batches)
        elif error is not None:
            record("adakron.queue", call.encoded_s, now_s, error)


class TracedRequests:
    """ASGI middleware: the server span of each request, and its traceresponse."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        span, context = self._tracing.begin_request(scope)
        own = span.get_span_context()
        notes = current_notes()
        if notes is not None:
            notes.trace = (f"{own.trace_id:032x}", f"{own.span_id:016x}")
        response = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        status = 499  # the client had gone before a reply began

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["traceresponse"] = response
            await send(message)

        token = attach(context)
        try:
            await self._app(scope, receive, send_with_trace)
        finally:
            detach(token)
            if span.is_recording():
                _describe(span, scope, status)
            span.end()


def _describe(span: Span, scope: Scope, status: int) -> None:
    notes = current_notes()
    route = route_of(scope)
    if route != "other":
        span.update_name(f"{method_of(scope)} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    error = None if notes is None else notes.error
    if status >= 500:
        _fail(span, error or str(status))
    elif error is not None:
        span.set_attribute("error.type", error)
    if notes is None:
        return
    known = {"adakron.adapter": notes.adapter, "adakron.rows": notes.rows}
    if notes.rows is not None:
        known |= {"adakron.adapters": notes.adapters, "adakron.failed_rows": notes.failed_rows}
    for name, value in known.items():
        if value is not None:
            span.set_attribute(name, value)


def _fail(span: Span, code: str) -> None:
    # Never the message: it may quote what was sent.
    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR))


def _error_of(call: "Submission") -> str | None:
    """The code of what became of a call other than results."""
    if call.failure is not None:
        return call.failure.code
    if call.unsettled:
        return "ABANDONED"
    errors = [outcome.code for outcome in call.settled if isinstance(outcome, ServerError)]
    return errors[0] if errors else None


def _resource(process: str) -> Resource:
    wanted = Resource.create({SERVICE_VERSION: adakron.__version__, SERVICE_INSTANCE_ID: process})
    if str(wanted.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return wanted.merge(Resource({SERVICE_NAME: "adakron-server"}))
    return wanted
