"""`adakron stats NAME`: what an adapter served, and whether its labels are still those it was trained on.

Knows printing; `server.client` asks.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_arguments import Json, Name, Url, connect, is_watched, print_json

if TYPE_CHECKING:
    from server.client.replies import VersionStats

PIPE_WIDTH = 120


def add_commands(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command()(stats)


def stats(
    name: Name,
    labels: Annotated[int, typer.Option(min=0, help="how many labels to show of each version")] = 10,
    as_json: Json = False,
    url: Url = None,
) -> int:
    """Show what an adapter served: calls, latencies, labels and drift, by version."""
    with connect(url, name) as client:
        reply = client.stats(name)
    if as_json:
        print_json(reply, indent=1)
        return 0
    called = [version for version in reply["versions"] if version["since"] is not None]
    idle = [f"@{version['version']}" for version in reply["versions"] if version["since"] is None]
    for version in called:
        _print_version(reply["name"], version, labels)
    if idle:
        print(f"{reply['name']}: {', '.join(idle)} not called since {'its' if len(idle) == 1 else 'their'} activation")
    if not reply["replicas"]:
        print("no replica answered in time: what they counted is missing", file=sys.stderr)
    return 0


def _print_version(name: str, version: "VersionStats", most_labels: int) -> None:
    from rich.console import Console
    from rich.table import Table

    requests, rows, latency = version["requests"], version["rows"], version["latency_seconds"]
    state = "active" if version["active"] else "kept"
    print(f"{name}@{version['version']} ({state}) since {version['since']}")
    print(f"  requests  {requests['good']:,} good, {requests['failed']:,} failed")
    print(f"  rows      {rows['good']:,} good, {rows['failed']:,} failed, {version['withheld']:,} without a label")
    timings = ", ".join(f"{figure} {_milliseconds(seconds)}" for figure, seconds in latency.items())
    print(f"  latency   {timings}")
    drift = version["drift"]
    if drift is None:
        print(f"  drift     none: {version['drift_reason']}")
    else:
        print(f"  drift     PSI {drift['psi']:.3f}, Jensen-Shannon distance {drift['jensen_shannon']:.3f}")
    shown = version["labels"][:most_labels]
    if not shown:
        return
    table = Table("  label", box=None, pad_edge=False)
    for heading in ("rows", "share", "reference"):
        table.add_column(heading, justify="right")
    for label in shown:
        table.add_row(
            f"  {label['label']}", f"{label['rows']:,}", _percent(label["share"]), _percent(label["reference"])
        )
    if len(version["labels"]) > len(shown):
        table.add_row(f"  and {len(version['labels']) - len(shown)} more")
    # A pipe has no width; rich would take 80 columns, and fold what a script looks for.
    Console(markup=False, highlight=False, width=None if is_watched() else PIPE_WIDTH).print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
