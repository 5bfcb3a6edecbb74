"""GET /v1/adapters/{name}/stats, from rows through the real service to the answer, and what the command line shows."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from adakron import Adapter, AdapterConfig
from adakron.drift import drift
from server.admin import make_admin_app
from server.admin_documents import STATS
from server.telemetry.served import Served, ServedCounts
from tests.server.cli_runs import Run
from tests.server.fakes import tiny_adapter
from tests.server.in_process import Server
from tests.server.stub_engine import config_of
from tests.server.telemetry.test_served import result


def referenced(seed: int, shares: Sequence[float] | None, **changes: Any) -> Adapter:
    """A tiny artefact whose training data had these shares of ham and spam."""
    adapter = tiny_adapter(seed)
    distribution = None if shares is None else tuple(shares)
    return Adapter.build(replace(adapter.config, label_distribution=distribution, **changes), adapter.tensors)


def stats(server: Server, name: str) -> httpx.Response:
    request = httpx.Request("GET", f"http://test/v1/adapters/{name}/stats")
    return server.wire.answer(request)


@pytest.fixture
def counts(server: Server) -> list[ServedCounts]:
    """Of two replicas."""
    server.house.replicas.counts = [ServedCounts(clock=lambda: 50.0), ServedCounts(clock=lambda: 20.0)]
    return server.house.replicas.counts


def put(server: Server, name: str, adapter: Adapter) -> None:
    reply = server.wire.answer(httpx.Request("PUT", f"http://test/v1/adapters/{name}", content=adapter.to_bytes()))
    assert reply.status_code == 201, reply.text


def version_of(reply: httpx.Response, number: int = 1) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    return next(version for version in reply.json()["versions"] if version["version"] == number)


HAM, SPAM = result(0.9, 0.1), result(0.2, 0.8)


def test_replicas_are_summed_and_compared_with_the_reference(server: Server, counts: list[ServedCounts]) -> None:
    put(server, "acme/x", referenced(1, (0.8, 0.2)))
    counts[0].note("acme/x", 1, [HAM] * 60, 2, 0.01)
    counts[1].note("acme/x", 1, [SPAM] * 60, 0, 0.02)
    counts[1].note("acme/x", 1, [], 3, 0.5)
    reply = stats(server, "acme/x")
    assert (reply.json()["name"], reply.json()["active"], reply.json()["replicas"]) == ("acme/x", 1, 2)
    version = version_of(reply)
    assert version["active"]
    assert version["since"] == "1970-01-01T00:00:20+00:00"
    assert version["requests"] == {"good": 2, "failed": 1}
    assert version["rows"] == {"good": 120, "failed": 5}
    assert version["latency_seconds"]["mean"] == pytest.approx(0.015)
    assert 0.009 < version["latency_seconds"]["p50"] < version["latency_seconds"]["p99"] < 0.022
    assert version["labels"] == [
        {"label": "ham", "rows": 60, "share": 0.5, "reference": 0.8},
        {"label": "spam", "rows": 60, "share": 0.5, "reference": 0.2},
    ]
    expected = drift((0.8, 0.2), (60, 60))
    assert version["drift"] == {"psi": round(expected.psi, 6), "jensen_shannon": round(expected.jensen_shannon, 6)}
    assert version["drift_reason"] is None


def test_versions_are_counted_apart_and_one_never_called_is_there(server: Server, counts: list[ServedCounts]) -> None:
    put(server, "x", referenced(1, (0.8, 0.2)))
    put(server, "x", referenced(2, (0.5, 0.5)))
    counts[0].note("x", 2, [HAM] * 100, 0, 0.01)
    reply = stats(server, "x")
    assert version_of(reply, 2)["drift"]["psi"] > 1
    never = version_of(reply, 1)
    assert (never["since"], never["active"], never["drift"]) == (None, False, None)
    assert never["drift_reason"] == "0 rows so far; below 100, chance alone may look like drift"
    assert never["latency_seconds"] == {"mean": None, "p50": None, "p95": None, "p99": None}
    assert [label["share"] for label in never["labels"]] == [None, None]


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (referenced(1, None), "the artefact has no reference: its label_distribution is empty"),
        (referenced(1, (0.0, 0.0)), "the artefact has no reference: its label_distribution is empty"),
        (referenced(1, (0.5, 0.5)), "99 rows so far; below 100, chance alone may look like drift"),
    ],
)
def test_no_drift_without_a_reference_or_enough_rows(
    server: Server, counts: list[ServedCounts], adapter: Adapter, reason: str
) -> None:
    put(server, "x", adapter)
    counts[0].note("x", 1, [HAM] * 99, 0, 0.01)
    version = version_of(stats(server, "x"))
    assert (version["drift"], version["drift_reason"]) == (None, reason)


def test_withheld_rows_count_apart(server: Server, counts: list[ServedCounts]) -> None:
    put(server, "x", referenced(1, (0.5, 0.5)))
    counts[0].note("x", 1, [result(0.6, 0.4, threshold=0.9)] * 200, 0, 0.01)
    version = version_of(stats(server, "x"))
    assert version["withheld"] == 200
    assert version["drift_reason"].startswith("0 rows so far")


def test_no_replica_answers(server: Server) -> None:
    put(server, "x", referenced(1, (0.5, 0.5)))
    reply = stats(server, "x")
    assert reply.json()["replicas"] == 0
    assert version_of(reply)["requests"] == {"good": 0, "failed": 0}


def test_names_are_checked(server: Server) -> None:
    assert stats(server, "nothing").status_code == 404
    assert stats(server, "Nothing").status_code == 422
    assert stats(server, "a/b/c").status_code == 422


def test_an_artefact_that_was_never_readable_has_no_labels() -> None:
    from server.records import Entry, VersionRow
    from server.registry import Traffic
    from server.telemetry.stats import stats_reply

    entry = Entry(1, {1: VersionRow("a" * 64, 1, "2026-11-23T10:00:00+00:00")}, 1)
    version = stats_reply(Traffic("x", entry, {1: Served(0.0)}, {1: None}, 1))["versions"][0]
    assert (version["labels"], version["drift_reason"]) == ([], "the artefact's configuration could not be read")


def _traffic(config: AdapterConfig, served: Served) -> dict[str, Any]:
    from server.records import Entry, VersionRow
    from server.registry import Traffic
    from server.telemetry.stats import stats_reply

    entry = Entry(1, {1: VersionRow("a" * 64, 1, "2026-11-23T10:00:00+00:00")}, 1)
    version: dict[str, Any] = stats_reply(Traffic("x", entry, {1: served}, {1: config}, 1))["versions"][0]
    return version


def test_a_regression_has_no_labels() -> None:
    version = _traffic(config_of(("value",), "regression"), Served(0.0, good_rows=1000))
    assert (version["labels"], version["drift_reason"]) == ([], "a regression has no labels")


def test_shares_of_several_labels_a_row_are_of_all_rows() -> None:
    config = replace(config_of(("a", "b"), "multi_label_classification"), label_distribution=(0.5, 0.9))
    version = _traffic(config, Served(0.0, good_rows=200, labels={0: 100, 1: 180}))
    assert [(label["label"], label["share"]) for label in version["labels"]] == [("b", 0.9), ("a", 0.5)]
    assert version["drift"] == {"psi": 0.0, "jensen_shannon": 0.0}


def test_what_the_service_answers_is_what_is_counted(server: Server) -> None:
    """Rows through the real service: its labels are what clients saw; failed rows and shadows are none of them."""
    put(server, "sst2", tiny_adapter(1, ("negative", "positive")))
    server.house.replicas.counts = [server.bench.service.served]
    server.bench.resolver.shadow["sst2"] = 1
    body = {"adapter": "sst2", "inputs": [f"text {number}" for number in range(20)] + [" "]}
    answer = server.wire.answer(httpx.Request("POST", "http://test/v1/classify", json=body)).json()
    seen = [row["label"] for row in answer["results"] if "label" in row]
    version = version_of(stats(server, "sst2"))
    assert {label["label"]: label["rows"] for label in version["labels"]} == {
        "negative": seen.count("negative"),
        "positive": seen.count("positive"),
    }
    assert version["requests"] == {"good": 1, "failed": 0}
    assert version["rows"] == {"good": 20, "failed": 1}
    assert version["latency_seconds"]["p50"] > 0


def test_a_replica_begins_anew_with_what_becomes_active(server: Server) -> None:
    told: list[tuple[str, int]] = []
    server.house.replicas.replicas[0]._on_activated = lambda name, version: told.append((name, version))
    put(server, "x", tiny_adapter(1))
    put(server, "x", tiny_adapter(2))
    for path, body in (("activate", {"version": 1}), ("activate", {"version": 1})):
        server.wire.answer(httpx.Request("POST", f"http://test/v1/adapters/x/{path}", json=body))
    server.wire.answer(httpx.Request("PUT", "http://test/v1/adapters/x/split", json={"weights": {"1": 50, "2": 50}}))
    assert told == [("x", 1), ("x", 2), ("x", 1)]


def test_the_documented_example_is_what_the_code_would_answer(server: Server, counts: list[ServedCounts]) -> None:
    put(server, "acme/spam", referenced(1, (0.8, 0.2)))
    counts[0].note("acme/spam", 1, [HAM] * 2376 + [SPAM] * 1584, 12, 0.01)
    examples = STATS[200]["content"]["application/json"]["examples"]
    shown, found = examples["drifted"]["value"]["versions"][0], version_of(stats(server, "acme/spam"))
    assert shown.keys() == found.keys()
    assert (shown["labels"], shown["drift"], shown["rows"]) == (found["labels"], found["drift"], found["rows"])


def test_the_command_line_shows_it(server: Server, counts: list[ServedCounts], run: Run) -> None:
    put(server, "x", referenced(1, (0.8, 0.2)))
    put(server, "x", referenced(2, (0.8, 0.2)))
    counts[0].note("x", 2, [HAM] * 60 + [SPAM] * 60, 2, 0.01)
    code, out, _ = run("stats", "x")
    assert code == 0
    assert "x@2 (active) since 1970-01-01T00:00:50+00:00" in out
    assert "requests  1 good, 0 failed" in out
    assert "rows      120 good, 2 failed, 0 without a label" in out
    far = drift((0.8, 0.2), (60, 60))
    assert f"drift     PSI {far.psi:.3f}, Jensen-Shannon distance {far.jensen_shannon:.3f}" in out
    assert [line.split() for line in out.splitlines() if "ham" in line] == [["ham", "60", "50.0%", "80.0%"]]
    assert "x: @1 not called since its activation" in out


def test_the_command_line_shows_as_many_labels_as_asked_and_why_there_is_no_drift(
    server: Server, counts: list[ServedCounts], run: Run
) -> None:
    put(server, "x", referenced(1, (0.8, 0.2)))
    counts[0].note("x", 1, [HAM], 0, 0.01)
    out = run("stats", "x", "--labels", 1)[1]
    assert "drift     none: 1 rows so far" in out
    assert "and 1 more" in out
    assert "spam" not in out
    assert json.loads(run("stats", "x", "--json")[1])["versions"][0]["rows"] == {"good": 1, "failed": 0}


def test_the_command_line_says_when_nobody_answered(server: Server, run: Run) -> None:
    put(server, "reviews", tiny_adapter(1))
    assert "no replica answered" in run("stats", "reviews")[2]
    code, _, err = run("stats", "review")
    assert (code, "did you mean 'reviews'" in err) == (3, True)


def test_the_route_needs_the_scope_read() -> None:
    from server.access.gate import Needed, scopes_of

    app = make_admin_app(None)  # type: ignore[arg-type]
    assert scopes_of(app)["GET", "/v1/adapters/{name}/stats"] == Needed("read")
