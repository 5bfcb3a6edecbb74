"""From outcomes to a table, a JSON file and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.engine_outcome import B0, B1, B5, ENGINE, FLOOR, UNIFORM, ZIPF, Case, Outcome
from loadtests.engine_targets import judge

_COLUMNS = ("system", "rows", "tokens", "adapters", "of", "runs", "ms", "quartiles", "rows/s", "tokens/s", "x B0", "MB")
_WIDTHS = (23, 6, 7, 8, 6, 4, 9, 17, 8, 9, 6, 7)


def table(outcome: Outcome) -> str:
    """One contest as fixed-width text.

    `adapters` counts the different ones in the batch, `of` the resident ones; `ms` is the median of the runs; `MB`
    what a run needs beside the weights.
    """
    lines = [f"-- {outcome.contest}", _line(_COLUMNS)]
    for entrant in outcome.entrants:
        seconds, ratio = outcome.seconds(entrant.system), outcome.ratio(entrant.system, B0)
        lines.append(
            _line(
                (
                    entrant.system,
                    str(entrant.rows),
                    str(entrant.n_tokens),
                    str(entrant.distinct) if entrant.registered else "-",
                    str(entrant.registered) if entrant.registered else "-",
                    str(seconds.count),
                    f"{1000 * seconds.median:.2f}",
                    f"{1000 * seconds.low:.2f}-{1000 * seconds.high:.2f}",
                    f"{entrant.rows / seconds.median:.0f}",
                    f"{entrant.n_tokens / seconds.median:.0f}",
                    "-" if ratio is None else f"{ratio.median:.3f}",
                    "-" if entrant.working_bytes is None else f"{entrant.working_bytes / 1e6:.1f}",
                )
            )
        )
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join([first.strip().ljust(_WIDTHS[0]), *others])


def write_document(path: Path, cases: Sequence[Case], conditions: Mapping[str, Any]) -> None:
    """JSON: the conditions, then each case with its points and its targets."""
    document = {
        "conditions": conditions,
        "cases": [
            {
                **case.document(),
                "targets": [
                    {"title": verdict.title, "status": verdict.status, "figure": verdict.figure}
                    for verdict in judge(case)
                ],
            }
            for case in cases
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def plot(case: Case, path: Path) -> None:
    """A PNG: rows a second by different adapters in a batch, and the share of B0's speed that each mix keeps.

    Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    rates, shares = figure.subplots(1, 2)
    figure.suptitle(f"{case.backbone}, {case.dtype}, {case.device}")
    distinct = [outcome for outcome in case.outcomes.values() if outcome.contest.endswith(" distinct")]
    for system in (FLOOR, B0, ENGINE, B5, B1):
        _rates(rates, system, distinct)
    rates.set(xscale="log", yscale="log", xlabel="different adapters in a batch", ylabel="rows / s")
    mixes = [outcome for outcome in case.outcomes.values() if outcome.contest.endswith(" tokens")]
    for system in (UNIFORM, ZIPF):
        _shares(shares, system, mixes)
    shares.axhline(1.0, color="black", linewidth=0.8)
    shares.set(xscale="log", xlabel="tokens in a batch", ylabel="speed, of the bare backbone's", ylim=(0, 1.2))
    for axes in (rates, shares):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _rates(axes: Any, system: str, outcomes: Sequence[Outcome]) -> None:
    points = [
        (max(other.distinct for other in outcome.entrants), entrant.rows / outcome.seconds(system).median)
        for outcome in outcomes
        for entrant in outcome.entrants
        if entrant.system == system
    ]
    if points:
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=system)


def _shares(axes: Any, system: str, outcomes: Sequence[Outcome]) -> None:
    points = [
        (outcome.entrants[0].n_tokens, ratio)
        for outcome in outcomes
        if (ratio := outcome.ratio(system, B0)) is not None
    ]
    if not points:
        return
    points.sort(key=lambda point: point[0])
    medians = [ratio.median for _, ratio in points]
    low = [ratio.median - ratio.low for _, ratio in points]
    high = [ratio.high - ratio.median for _, ratio in points]
    axes.errorbar([tokens for tokens, _ in points], medians, yerr=[low, high], fmt="o-", capsize=3, label=system)
