"""Counters of one process, and how those of several become one page.

Each replica has a registry of its own; `merge` joins their texts under a label `replica`. A bounded number of adapters,
the busiest, are named by a label; see `server.telemetry.busiest`. Creating a `Metrics` registers nothing globally.
"""

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adakron.resident import Residency
from server.telemetry.busiest import NAMED_ADAPTERS, Busiest, Figures
from server.telemetry.logs import AccessLog
from server.telemetry.notes import RequestNotes, begin_notes, end_notes, route_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class HttpMetrics:
    """What any process that answers HTTP counts.

    requests    {route, code} requests answered; route is the pattern, "other" where none matched
    request_s   {route} from the first byte of the reply's request to the end of the reply
    process_*   of the process: memory, CPU, open files, start
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        self.requests = Counter("adakron_requests", "HTTP requests answered.", ["route", "code"], registry=own)
        self.request_s = Histogram(
            "adakron_request_seconds", "Time to answer an HTTP request.", ["route"], registry=own, buckets=_SECONDS
        )

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)


class Metrics(HttpMetrics):
    """What one replica counts besides. Times are in seconds, sizes in rows or tokens.

    rows, tokens     rows run through the engine and their tokens
    batch_*          of each batch that ran: rows, tokens, adapters; fill is its tokens / the most a batch may have
    device_s         of each batch, in the engine; its sum grows by at most one second a second
    stage_s          {stage} of each call: tokenize, queue, forward, waiting for a thread included;
                     call_stages_s are these three
    cancelled_rows   rows that were queued and never run: the client had gone, or the deadline had passed
    misses           rows that did not find their adapter on the device and waited for it
    load_s           of each adapter that was brought to the device for rows that waited for it
    shadow_rows      {verdict} rows compared with a shadow version: same, different, failed, dropped
    refused          {code} calls turned away at the door: OVERLOADED, NOT_READY
    adapters         {adapter} calls and rows of the busiest `named_adapters`; those of all others are "_other"
    """

    def __init__(self, *, named_adapters: int = NAMED_ADAPTERS) -> None:
        super().__init__()
        own = self.registry
        self.adapters = Busiest(named_adapters)
        own.register(_Collected(lambda: _adapter_families(self.adapters.read())))
        self.rows = Counter("adakron_rows", "Rows run through the engine.", registry=own)
        self.tokens = Counter("adakron_tokens", "Tokens run through the engine.", registry=own)
        self.batch_rows = Histogram("adakron_batch_rows", "Rows in a batch.", registry=own, buckets=_ROWS)
        self.batch_tokens = Histogram("adakron_batch_tokens", "Tokens in a batch.", registry=own, buckets=_TOKENS)
        self.batch_adapters = Histogram(
            "adakron_batch_adapters", "Different adapters in a batch.", registry=own, buckets=_ROWS
        )
        self.batch_fill = Histogram(
            "adakron_batch_fill_ratio", "Tokens of a batch by what it may have.", registry=own, buckets=_SHARES
        )
        self.device_s = Histogram(
            "adakron_device_seconds", "Time the engine ran a batch.", registry=own, buckets=_SECONDS
        )
        self.queue_tokens = Gauge("adakron_queue_tokens", "Tokens waiting for the engine.", registry=own)
        self.queue_rows = Gauge("adakron_queue_rows", "Rows waiting for tokenizer or engine.", registry=own)
        self.stage_s = Histogram(
            "adakron_stage_seconds", "Time a call spent in a stage.", ["stage"], registry=own, buckets=_SECONDS
        )
        self.call_stages_s = tuple(self.stage_s.labels(stage) for stage in ("tokenize", "queue", "forward"))
        self.cancelled_rows = Counter("adakron_cancelled_rows", "Rows dropped before they ran.", registry=own)
        self.misses = Counter(
            "adakron_adapter_misses", "Rows that waited for their adapter to come to the device.", registry=own
        )
        self.load_s = Histogram(
            "adakron_load_seconds", "Time to bring an adapter to the device.", registry=own, buckets=_SECONDS
        )
        self.shadow_rows = Counter(
            "adakron_shadow_rows", "Answered rows compared with a shadow version.", ["verdict"], registry=own
        )
        self.refused = Counter("adakron_refused", "Calls turned away before they were queued.", ["code"], registry=own)

    def watch(self, residency: Callable[[], Residency]) -> None:
        """Add what the engine says of its tiers, asked anew at each rendering."""
        self.registry.register(_Collected(lambda: _residency_families(residency())))

    def describe(self, build: Mapping[str, str]) -> None:
        """Add what runs here, as the labels of `adakron_build_info`, which is always 1."""
        Info("adakron_build", "What runs here.", registry=self.registry).info(dict(build))


class RequestRecorder:
    """Outermost ASGI middleware that counts, times and logs every HTTP request, refused ones included."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, access: AccessLog | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._requests: dict[tuple[str, int], Counter] = {}
        self._request_s: dict[str, Histogram] = {}
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        notes = RequestNotes(scope)
        begun = begin_notes(notes)
        status = 499  # the client was gone, or the task cancelled, before a reply began

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            seconds = time.perf_counter() - started_s
            self._count(route_of(scope), status, seconds)
            if self._access is not None and self._access.wants(status):
                self._access.write(notes, status, seconds)
            end_notes(begun)

    def _count(self, route: str, status: int, seconds: float) -> None:
        # Looking a label up costs more than counting: both are kept for the few pairs that there are.
        if (route, status) not in self._requests:
            self._requests[route, status] = self._metrics.requests.labels(route, str(status))
            self._request_s[route] = self._metrics.request_s.labels(route)
        self._requests[route, status].inc()
        self._request_s[route].observe(seconds)


def merge(renders: Mapping[str, bytes]) -> bytes:
    """Join what several replicas rendered: every sample gains the label replica=<key>, every family appears once.

    Raises ValueError where a text is not in Prometheus' format.
    """
    families: dict[str, Metric] = {}
    for replica, text in sorted(renders.items()):
        for family in text_string_to_metric_families(text.decode("utf-8")):
            joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                joined.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Collected(lambda: list(families.values())))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Callable[[], list[Metric]]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families()


def _residency_families(now: Residency) -> list[Metric]:
    adapters = GaugeMetricFamily("adakron_adapters", "Adapters by where they are.", labels=["tier"])
    size = GaugeMetricFamily("adakron_adapter_bytes", "Bytes of adapters in memory.", labels=["tier"])
    loads = CounterMetricFamily(
        "adakron_adapter_loads", "Adapters brought to the device, from a tier.", labels=["tier"]
    )
    evictions = CounterMetricFamily("adakron_adapter_evictions", "Adapters given up in a tier.", labels=["tier"])
    for tier, count in (("device", now.device_adapters), ("host", now.host_adapters), ("known", now.adapters)):
        adapters.add_metric([tier], count)
    for family, device_or_store, host in (
        (size, ("device", now.device_bytes), now.host_bytes),
        (loads, ("store", now.store_loads), now.host_loads),
        (evictions, ("device", now.device_evictions), now.host_evictions),
    ):
        family.add_metric([device_or_store[0]], device_or_store[1])
        family.add_metric(["host"], host)
    hits = CounterMetricFamily("adakron_adapter_hits", "Rows that found their adapter on the device.", value=now.hits)
    leases = GaugeMetricFamily("adakron_leases", "Leases on adapters held now.", value=now.leases)
    pins = GaugeMetricFamily("adakron_pins", "Rows that hold slots on the device now.", value=now.pins)
    return [adapters, size, loads, evictions, hits, leases, pins]


def _adapter_families(figures: Mapping[str, Figures]) -> list[Metric]:
    calls = CounterMetricFamily(
        "adakron_adapter_requests",
        "Calls of an adapter; one fails where no row is good.",
        labels=["adapter", "outcome"],
    )
    rows = CounterMetricFamily("adakron_adapter_rows", "Rows of an adapter.", labels=["adapter", "outcome"])
    seconds = SummaryMetricFamily(
        "adakron_adapter_request_seconds", "Time of a good call of an adapter.", labels=["adapter"]
    )
    for name, counted in figures.items():
        calls.add_metric([name, "good"], counted.good_calls)
        calls.add_metric([name, "failed"], counted.failed_calls)
        rows.add_metric([name, "good"], counted.good_rows)
        rows.add_metric([name, "failed"], counted.failed_rows)
        seconds.add_metric([name], count_value=counted.good_calls, sum_value=counted.seconds)
    return [calls, rows, seconds]
