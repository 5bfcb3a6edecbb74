"""From samples to a table, a verdict and a picture."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.samples import CLASSIFY_KINDS, Sample, percentile

BUSY_GENERATOR = 0.9
_COLUMNS = (
    "requests",
    "requests/s",
    "rows/s",
    "adapters",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "failed",
    "429",
    "absent",
    "wrong",
)


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Figures for each kind of request and for all that classify together.

    Rates are over the time from the start to the last answer of these; latencies and rows_per_s are of requests that
    were answered rightly.
    """
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_kind[sample.kind].append(sample)
    classify = [sample for sample in samples if sample.kind in CLASSIFY_KINDS]
    seconds = max((sample.started_s + sample.latency_s for sample in classify), default=1.0)
    return {
        "seconds": round(seconds, 3),
        "kinds": {kind: _figures(by_kind[kind], seconds) for kind in sorted(by_kind, key=_rank)},
        "classify": _figures(classify, seconds),
    }


def problems(summary: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[str]:
    """Why the run must not count as passed, a line each; none if it does.

    A run that asked nothing has not passed: every kind of request must have been answered at least once.
    """
    found = []
    kinds = summary["kinds"]
    if outcome["wrong_rows"]:
        found.append(f"{outcome['wrong_rows']} answers of a wrong adapter, such as: {outcome['wrong_examples'][0]}")
    failed = sum(figures["failed"] for figures in kinds.values())
    if failed:
        found.append(f"{failed} requests failed, such as: {next(iter(outcome['faults']), 'no reply')}")
    refused = sum(figures["refused"] for figures in kinds.values())
    if refused:
        found.append(f"{refused} requests were refused with 429: the load is above what the server takes")
    found += [f"a user raised {exception}" for exception in outcome["exceptions"]]
    expected = [kind for kind in CLASSIFY_KINDS if kind != "pair" or outcome["has_pairs"]]
    for kind in (*expected, "register", "changed"):
        if not kinds.get(kind, {}).get("ok"):
            found.append(f"no {kind} request was answered")
    return found


def notes(outcome: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures should know."""
    share = outcome["generator_cpu_share"]
    if share >= BUSY_GENERATOR:
        return [f"the load generator used {share:.0%} of a core: the server may be faster than these figures"]
    return []


def table(summary: Mapping[str, Any]) -> str:
    """Fixed-width text, a line for each kind and one for all that classify."""
    rows: list[tuple[str, ...]] = [("", *_COLUMNS)]
    rows += [(kind, *_cells(figures)) for kind, figures in summary["kinds"].items()]
    rows.append(("all classify", *_cells(summary["classify"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Latency percentiles and rows answered, second by second, as a PNG; changes of adapters are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    latency, throughput = figure.subplots(2, 1, sharex=True)
    by_second: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.kind in CLASSIFY_KINDS and sample.outcome == "ok":
            by_second[int(sample.started_s + sample.latency_s)].append(sample)
    # The last second is cut short and would show as a fall; one without answers in between must show as one.
    seconds = range(max(1, max(by_second, default=0)))
    middles = [second + 0.5 for second in seconds]
    for share, colour in ((0.5, "tab:blue"), (0.95, "tab:orange"), (0.99, "tab:red")):
        values = [_percentile_ms(by_second[second], share) for second in seconds]
        latency.plot(middles, values, ".-", color=colour, label=f"p{share * 100:.0f}")
    changes = [sample.started_s for sample in samples if sample.kind in ("register", "activate", "delete")]
    on_axis = [0.0] * len(changes)
    latency.plot(changes, on_axis, "|", color="black", markersize=9, clip_on=False, label="an adapter is changed")
    latency.set_ylabel("latency, ms")
    latency.set_ylim(bottom=0)
    rows = [[sum(s.rows for s in by_second[second] if s.kind == kind) for second in seconds] for kind in CLASSIFY_KINDS]
    throughput.stackplot(middles, rows, labels=CLASSIFY_KINDS)
    throughput.set_ylabel("rows answered / s")
    throughput.set_xlabel("seconds")
    for axes in (latency, throughput):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _percentile_ms(samples: Sequence[Sample], share: float) -> float:
    return 1000 * percentile(sorted(s.latency_s for s in samples), share) if samples else math.nan


def _figures(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    counts = {word: sum(s.outcome == word for s in samples) for word in ("ok", "absent", "refused", "failed", "wrong")}
    latencies = sorted(sample.latency_s for sample in samples if sample.outcome == "ok")
    percentiles = {
        f"p{share * 100:.0f}_s": round(percentile(latencies, share), 6) if latencies else None
        for share in (0.5, 0.95, 0.99)
    }
    return {
        "requests": len(samples),
        "requests_per_s": round(len(samples) / seconds, 1),
        "rows_per_s": round(sum(sample.rows for sample in samples) / seconds, 1),
        "adapters_per_request": round(sum(s.adapters for s in samples) / len(samples), 1) if samples else None,
        **percentiles,
        **counts,
    }


def _cells(figures: Mapping[str, Any]) -> tuple[str, ...]:
    def milliseconds(key: str) -> str:
        return "-" if figures[key] is None else f"{1000 * figures[key]:.1f}"

    adapters = figures["adapters_per_request"]
    return (
        str(figures["requests"]),
        f"{figures['requests_per_s']:.1f}",
        f"{figures['rows_per_s']:.1f}",
        "-" if adapters is None else f"{adapters:.1f}",
        milliseconds("p50_s"),
        milliseconds("p95_s"),
        milliseconds("p99_s"),
        *(str(figures[word]) for word in ("failed", "refused", "absent", "wrong")),
    )


def _rank(kind: str) -> tuple[int, str]:
    return (CLASSIFY_KINDS.index(kind) if kind in CLASSIFY_KINDS else len(CLASSIFY_KINDS), kind)
