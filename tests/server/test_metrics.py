import asyncio

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from adakron.resident import Residency
from server.metrics import Metrics, RequestRecorder, merge


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_two_of_them_count_apart_and_neither_globally() -> None:
    one, two = Metrics(), Metrics()
    one.rows.inc(3)
    assert samples(one.render())["adakron_rows_total", ()] == 3
    assert samples(two.render())["adakron_rows_total", ()] == 0
    assert not any(family.name.startswith("adakron") for family in REGISTRY.collect())


def test_adapters_are_named_up_to_a_limit() -> None:
    own = Metrics(named_adapters=2)
    for name in ("a", "b", "c", "d"):
        own.adapters.figures_of(name).count(3, 1, 0.25)
    own.adapters.figures_of("a").count(0, 1, 9.0)
    seen = samples(own.render())
    assert {dict(labels)["adapter"] for _, labels in seen if "adapter" in dict(labels)} == {"a", "b", "_other"}
    assert seen["adakron_adapter_requests_total", (("adapter", "a"), ("outcome", "failed"))] == 1
    assert seen["adakron_adapter_requests_total", (("adapter", "_other"), ("outcome", "good"))] == 2
    assert seen["adakron_adapter_rows_total", (("adapter", "b"), ("outcome", "good"))] == 3
    assert seen["adakron_adapter_request_seconds_sum", (("adapter", "a"),)] == 0.25
    assert seen["adakron_adapter_request_seconds_count", (("adapter", "_other"),)] == 2


def test_no_other_metric_has_an_adapter_as_a_label() -> None:
    own = Metrics()
    for metric in vars(own).values():
        assert "adapter" not in getattr(metric, "_labelnames", ())


def test_the_build_and_the_process_are_there() -> None:
    own = Metrics()
    own.describe({"version": "0.1.0", "device": "cpu"})
    merged = samples(merge({"r1": own.render()}))
    assert merged["adakron_build_info", (("device", "cpu"), ("replica", "r1"), ("version", "0.1.0"))] == 1
    assert merged["process_resident_memory_bytes", (("replica", "r1"),)] > 0


def test_names_keep_to_the_conventions() -> None:
    """Base units; counters end in _total, and nothing else does; help for every family."""
    own = Metrics()
    own.watch(lambda: Residency())
    own.describe({"version": "0.1.0"})
    for family in text_string_to_metric_families(own.render().decode()):
        assert family.documentation
        assert family.name.startswith(("adakron_", "process_"))
        totals = {sample.name.endswith("_total") for sample in family.samples}
        assert totals <= {family.type == "counter"}, family.name
        assert not family.name.endswith(("_ms", "_milliseconds", "_percent", "_mb", "_kb"))


def test_merge_labels_every_sample_with_its_replica() -> None:
    one, two = Metrics(), Metrics()
    one.rows.inc(3)
    two.rows.inc(4)
    one.stage_s.labels("queue").observe(0.02)
    merged = samples(merge({"r1": one.render(), "r2": two.render()}))
    assert merged["adakron_rows_total", (("replica", "r1"),)] == 3
    assert merged["adakron_rows_total", (("replica", "r2"),)] == 4
    assert merged["adakron_stage_seconds_count", (("replica", "r1"), ("stage", "queue"))] == 1
    assert all(("replica", "r1") in labels or ("replica", "r2") in labels for _, labels in merged)


def test_merge_loses_no_sample_and_no_bucket() -> None:
    own = Metrics()
    own.batch_rows.observe(7)
    own.requests.labels("/v1/classify", "200").inc()
    text = own.render()
    before, merged = samples(text), samples(merge({"r1": text}))
    assert merged == {
        (name, tuple(sorted([*labels, ("replica", "r1")]))): value for (name, labels), value in before.items()
    }


def test_merge_declares_every_family_once() -> None:
    text = merge({"r1": Metrics().render(), "r2": Metrics().render()}).decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 5


def test_merge_of_nothing_is_empty() -> None:
    assert merge({}) == b""


def test_merge_of_something_else_raises() -> None:
    with pytest.raises(ValueError, match=r".+"):
        merge({"r1": b"<html>"})


def scope_of(path: str = "/x") -> Scope:
    return {"type": "http", "path": path, "headers": []}


async def receive() -> Message:
    return {"type": "http.request"}


async def send(message: Message) -> None:
    pass


async def test_a_request_counts_under_its_route_and_status() -> None:
    class Route:
        path = "/v1/things/{name}"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = Route()
        await send({"type": "http.response.start", "status": 418})

    own = Metrics()
    await RequestRecorder(app, own)(scope_of(), receive, send)
    counted = samples(own.render())
    assert counted["adakron_requests_total", (("code", "418"), ("route", "/v1/things/{name}"))] == 1
    assert counted["adakron_request_seconds_count", (("route", "/v1/things/{name}"),)] == 1


async def test_unknown_paths_count_under_one_name() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404})

    own = Metrics()
    for number in range(100):
        await RequestRecorder(app, own)(scope_of(f"/{number}"), receive, send)
    assert samples(own.render())["adakron_requests_total", (("code", "404"), ("route", "other"))] == 100


async def test_a_client_that_left_counts_as_499() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    own = Metrics()
    with pytest.raises(asyncio.CancelledError):
        await RequestRecorder(app, own)(scope_of(), receive, send)
    assert samples(own.render())["adakron_requests_total", (("code", "499"), ("route", "other"))] == 1


def test_what_the_engine_says_of_its_tiers_is_asked_anew_each_time() -> None:
    metrics = Metrics()
    now = Residency(adapters=9, device_adapters=3, host_adapters=2, leases=4, pins=1, hits=7, host_evictions=5)
    metrics.watch(lambda: now)
    assert metrics.registry.get_sample_value("adakron_adapters", {"tier": "device"}) == 3
    assert metrics.registry.get_sample_value("adakron_adapters", {"tier": "known"}) == 9
    assert metrics.registry.get_sample_value("adakron_adapter_evictions_total", {"tier": "host"}) == 5
    assert metrics.registry.get_sample_value("adakron_leases") == 4
    now = Residency(hits=8)
    text = metrics.render().decode()
    assert "adakron_adapter_hits_total 8.0" in text
    assert merge({"r": metrics.render()}).decode().count("# TYPE adakron_adapter_loads_total counter") == 1
