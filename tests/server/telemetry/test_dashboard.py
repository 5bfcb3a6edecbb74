"""The dashboard and the alerts ask for what GET /metrics really has, and show all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adakron.resident import Residency
from server.data_plane import _build
from server.metrics import merge
from tests.server.test_app import Bench

FUNCTIONS = {"rate", "sum", "topk", "histogram_quantile", "time", "absent", "changes", "label_values"}
GROUPING = {"by"}
_TOKEN = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*|[{}()\[\]]|\"[^\"]*\"|[0-9.]+|\S")

# Families that no panel shows, and why.
UNSHOWN = {
    "process_virtual_memory_bytes": "address space says little; resident memory is shown",
}

Page = dict[str, set[str]]


@pytest_asyncio.fixture
async def page() -> Page:
    """Name of each sample that /metrics has -> its labels, after calls of every kind."""
    bench = Bench()
    bench.resolver.add("sst2")
    metrics = bench.service.metrics
    metrics.watch(lambda: Residency(adapters=1))
    engine = SimpleNamespace(
        backbone="b",
        device="cpu",
        dtype="float32",
        kernels="native",
        fingerprint=SimpleNamespace(weights_sha256="0" * 64),
    )
    metrics.describe(_build(cast(Any, SimpleNamespace(info=lambda: engine))))
    async with bench.client:
        await bench.classify({"adapter": "sst2", "inputs": "x"})  # not started: refused
        await bench.service.start()
        bench.resolver.shadow["sst2"] = 1
        await bench.classify({"adapter": "sst2", "inputs": ["x", " "]})
        await bench.service.stop(grace_s=1)
        metrics.shadow_rows.labels("same")
        text = merge({"r1": (await bench.client.get("/metrics")).content})
    found: Page = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def dashboard(project_dir: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((project_dir / "server/telemetry/grafana.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def rules(project_dir: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load((project_dir / "server/telemetry/alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def asked(expression: str) -> tuple[set[str], set[str]]:
    """Metrics and labels of a PromQL expression. Raises ValueError for a word that is neither, nor a known function."""
    tokens = _TOKEN.findall(re.sub(r"\[[^\]]*\]", "", expression))
    metrics, labels = set(), set()
    closing: list[str] = []
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token in "{(":
            is_labels = token == "{" or tokens[place - 1] in GROUPING
            closing.append("labels" if is_labels else "")
        elif token in "})":
            closing.pop()
        elif re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", token):
            if closing and closing[-1] == "labels":
                labels.add(token)
            elif token in GROUPING or (token in FUNCTIONS and following in ("(", *GROUPING)):
                continue
            elif following == "(":
                raise ValueError(f"{token} is no function that this test knows")
            elif closing and tokens[0] == "label_values" and tokens[place - 1] == ",":
                labels.add(token)
            else:
                metrics.add(token)
    return metrics, labels


def faults(expression: str, page: Page) -> Iterator[str]:
    """What an expression asks for that is not there."""
    metrics, labels = asked(expression)
    if not metrics:
        yield f"{expression}: no metric"
    for metric in metrics - page.keys():
        yield f"{expression}: no sample {metric}"
    there = set().union(*(page.get(metric, set()) for metric in metrics))
    for label in labels - there:
        yield f"{expression}: no label {label}"


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def test_every_expression_of_the_dashboard_finds_something(page: Page, dashboard: dict[str, Any]) -> None:
    found = [fault for expression in expressions(dashboard) for fault in faults(expression, page)]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found += faults(variable["definition"], page)
    assert not found, "\n".join(found)


def test_every_legend_names_a_label_of_its_expression(page: Page, dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            metrics, _ = asked(target["expr"])
            grouped = set().union(*(re.split(r",\s*", g) for g in re.findall(r"by \(([^)]*)\)", target["expr"])))
            there = grouped or set().union(*(page[metric] for metric in metrics))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= there, panel["title"]


def test_every_alert_asks_for_something_that_is_there_and_says_what_to_do(
    page: Page, rules: list[dict[str, Any]]
) -> None:
    found = [fault for rule in rules for fault in faults(rule["expr"], page)]
    assert not found, "\n".join(found)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        _, labels = asked(rule["expr"])
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= labels, rule["alert"]
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_everything_that_is_exported_is_shown_or_has_a_reason(page: Page, dashboard: dict[str, Any]) -> None:
    shown = set().union(*(asked(expression)[0] for expression in expressions(dashboard)))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in page if not name.endswith("_created")}
    missing = families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert missing == UNSHOWN.keys()


def test_every_panel_has_a_title_a_unit_a_description_and_a_place(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        place = panel["gridPos"]
        squares = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not squares & taken, panel["title"]
        taken |= squares
    assert max(x for x, _ in taken) == 23
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(adakron_row_total[5m])", "no sample adakron_row_total"),
        ('adakron_rows_total{adapter="x"}', "no label adapter"),
        ("sum by (tier) (adakron_rows_total)", "no label tier"),
        ("1 + 1", "no metric"),
    ],
)
def test_a_planted_fault_is_found(page: Page, expression: str, fault: str) -> None:
    assert [found.rpartition(": ")[2] for found in faults(expression, page)] == [fault]


def test_an_unknown_function_is_not_taken_for_a_metric() -> None:
    with pytest.raises(ValueError, match="no function"):
        asked("increase(adakron_rows_total[5m])")
