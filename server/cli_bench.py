"""`adakron bench`: the benchmarks of a checkout, each in a process of its own. The installed package has none."""

import subprocess
import sys
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated

import typer

from server.cli_errors import CommandError

_PROGRAMS = {"engine": "loadtests.engine", "http": "loadtests.run"}
# All that follows a verb is for another program: nothing of it is read here.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


class What(StrEnum):
    """What can be measured."""

    engine = "engine"
    http = "http"


def add_commands(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command(context_settings=PASSED_ON)(bench)


def bench(
    context: typer.Context,
    what: Annotated[
        What, typer.Argument(help="engine: against the bare backbone and its rivals; http: a server under load")
    ],
) -> int:
    """Measure speed. What follows is for the benchmark, such as `adakron bench http --seconds 10`."""
    program = _PROGRAMS[what.value]
    if find_spec(program.partition(".")[0]) is None:
        raise CommandError(
            "the benchmarks are not part of the installed package",
            hint="run this from a checkout of the sources, or `make bench` and `make load` there",
        )
    return subprocess.run([sys.executable, "-m", program, *context.args], check=False).returncode
