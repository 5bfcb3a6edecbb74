"""From the HTTP benchmark's outcome to tables, for a terminal and for docs/http.md, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: python -m loadtests.http --page docs/http.json -->", "<!-- end of figures -->"
_HEADINGS = ("system", "rows/s", "requests/s", "p50 ms", "p99 ms", "server CPU us/request", "client CPU us/request")


def table(contest: Mapping[str, Any]) -> str:
    """One contest of the document as a Markdown table, with the processes' shares below it."""
    lines = [f"**{contest['contest']}**, medians of {contest['rounds']} rounds", "", _row(_HEADINGS)]
    lines.append(_row(("---",) * len(_HEADINGS)))
    lines += [_row(_cells(system)) for system in contest["systems"]]
    shares = [
        f"{system['system']}: " + ", ".join(f"{kind} {us:.0f}" for kind, us in system["cpu_us"].items())
        for system in contest["systems"]
        if len(system["cpu_us"]) > 1
    ]
    return "\n".join([*lines, "", *(f"{share}." for share in shares)]).rstrip()


def figures(document: Mapping[str, Any]) -> str:
    """All that the page says in numbers."""
    machine = document["conditions"]
    said = f"{machine['device']}, {machine['cores']} cores, Python {machine['python']}; {machine['at'][:10]}"
    rough = "; with `--quick`, so read it as rough" if machine["quick"] else ""
    targets = [
        f"| {target['title']} | {'met' if target['met'] else '**missed**'} | {target['figure']} |"
        for target in document["targets"]
    ]
    return "\n\n".join(
        [
            f"Measured on {said}; load average at the start {machine['load_average']}{rough}.",
            "\n".join(["| target | | measured |", "| --- | --- | --- |", *targets]),
            *(table(contest) for contest in document["contests"]),
        ]
    )


def filled(page: str, document: Mapping[str, Any]) -> str:
    """The page with the document's figures between its two marks. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{figures(document)}\n\n{END}{after}"


def plot(document: Mapping[str, Any], path: Path) -> None:
    """A PNG: the server's CPU a request, by process, of each contest that measured it without an engine.

    Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = [system for contest in document["contests"][-1:] for system in contest["systems"]]
    kinds = dict.fromkeys(kind for system in systems for kind in system["cpu_us"])
    chart = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots()
    left = [0.0] * len(systems)
    for kind in kinds:
        widths = [system["cpu_us"].get(kind, 0.0) for system in systems]
        axes.barh([system["system"] for system in systems], widths, left=left, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="CPU of the server, microseconds a request")
    axes.legend(frameon=False, fontsize="small")
    chart.savefig(path, dpi=120)


def _cells(system: Mapping[str, Any]) -> Sequence[str]:
    cpu, client = system["server_cpu_us"], system["client_cpu_us"]
    return (
        system["system"],
        f"{system['rows_per_s']:.0f}",
        f"{system['requests_per_s']:.0f}",
        f"{system['p50_ms']:.2f}",
        f"{system['p99_ms']:.2f}",
        f"{cpu:.0f}" if cpu else "-",
        f"{client:.0f}" if client else "-",
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
