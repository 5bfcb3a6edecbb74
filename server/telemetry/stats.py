"""The answer of GET /v1/adapters/{name}/stats: what was counted, and the drift from the reference or why there is none.

The measures are `adakron.drift`'s: what a label distribution means belongs to the method, and the artefact, which holds
the reference, is read there.
"""

from datetime import UTC, datetime
from typing import Any

from adakron import AdapterConfig
from adakron.drift import Drift, drift, multi_label_drift, rows_needed
from server.registry import Traffic
from server.telemetry.served import Latencies, Served

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def stats_reply(traffic: Traffic) -> dict[str, Any]:
    """The JSON; versions in order, those that were never called with zeros."""
    entry = traffic.entry
    versions = [
        {
            "version": number,
            "sha256": row.sha256,
            "active": number == entry.active,
            **_version(traffic.served.get(number), traffic.configs.get(number)),
        }
        for number, row in entry.versions.items()
    ]
    return {"name": traffic.name, "active": entry.active, "replicas": traffic.replicas, "versions": versions}


def _version(served: Served | None, config: AdapterConfig | None) -> dict[str, Any]:
    counted = served or Served(0.0)
    since = None if served is None else datetime.fromtimestamp(served.since_s, UTC).isoformat(timespec="seconds")
    found, reason = _drift(counted, config)
    return {
        "since": since,
        "requests": {"good": counted.good_calls, "failed": counted.failed_calls},
        "rows": {"good": counted.good_rows, "failed": counted.failed_rows},
        "latency_seconds": _latency(counted.latencies),
        "labels": _labels(counted, config),
        "withheld": counted.withheld,
        "drift": None
        if found is None
        else {"psi": round(found.psi, 6), "jensen_shannon": round(found.jensen_shannon, 6)},
        "drift_reason": reason,
    }


def _latency(latencies: Latencies) -> dict[str, float | None]:
    values = {"mean": latencies.mean} | {name: latencies.quantile(share) for name, share in QUANTILES.items()}
    return {name: None if seconds is None else round(seconds, 6) for name, seconds in values.items()}


def _labels(served: Served, config: AdapterConfig | None) -> list[dict[str, Any]]:
    """Every label that was answered or that the reference has, by falling rows."""
    if config is None or config.problem_type == "regression":
        return []
    rows = _rows(served, config)
    reference = config.label_distribution
    labels: list[dict[str, Any]] = [
        {
            "label": name,
            "rows": served.labels.get(index, 0),
            "share": round(served.labels.get(index, 0) / rows, 6) if rows else None,
            "reference": None if reference is None else reference[index],
        }
        for index, name in enumerate(config.label_names)
    ]
    return sorted(labels, key=lambda label: label["rows"], reverse=True)


def _rows(served: Served, config: AdapterConfig) -> int:
    """Rows that the labels are shares of: those with a label; for several labels a row, all that were answered."""
    return served.good_rows if config.problem_type == "multi_label_classification" else sum(served.labels.values())


def _drift(served: Served, config: AdapterConfig | None) -> tuple[Drift | None, str | None]:
    if config is None:
        return None, "the artefact's configuration could not be read"
    if config.problem_type == "regression":
        return None, "a regression has no labels"
    reference = config.label_distribution
    if reference is None or not any(reference):
        return None, "the artefact has no reference: its label_distribution is empty"
    is_multi_label = config.problem_type == "multi_label_classification"
    rows, needed = _rows(served, config), rows_needed(2 if is_multi_label else config.num_labels)
    if rows < needed:
        return None, f"{rows} rows so far; below {needed}, chance alone may look like drift"
    counts = [served.labels.get(index, 0) for index in range(config.num_labels)]
    return (multi_label_drift(reference, counts, rows) if is_multi_label else drift(reference, counts)), None
