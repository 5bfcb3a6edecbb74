"""`adakron doctor`: what stands in the way of a server here, and what to do about it. `server.doctor` looks."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from server.cli_arguments import Json, print_json
from server.cli_errors import FAILED

if TYPE_CHECKING:
    from server.doctor import Finding

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}
_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "broken": typer.colors.RED}


def add_commands(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command()(doctor)


def doctor(as_json: Json = False) -> int:
    """Look for what keeps a server from starting or being fast here: packages, GPU, ports, state, backbone.

    Settings are those of `serve`, from the variables. Exit code 1 if something must be mended.
    """
    from server.cli_serve import settings_from
    from server.doctor import examine

    findings = examine(settings_from({}))
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if as_json:
        print_json({"healthy": not broken, "findings": [asdict(finding) for finding in findings]}, indent=1)
    else:
        for finding in findings:
            _print(finding)
        print(f"{len(broken)} to mend" if broken else "a server can start here")
    return FAILED if broken else 0


def _print(finding: "Finding") -> None:
    mark = f"{_MARKS[finding.verdict]:<7}"
    if sys.stdout.isatty():
        mark = typer.style(mark, fg=_COLOURS[finding.verdict])
    fix = f" -> {finding.fix}" if finding.fix else ""
    print(f"{mark} {finding.check:<10} {finding.found}{fix}")
