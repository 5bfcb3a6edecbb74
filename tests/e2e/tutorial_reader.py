"""A reader of docs/*.md who does what a page says, against a server that runs already."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from loadtests.newcomer import Newcomer
from loadtests.tutorial import Command, Program, Step, sections_of
from tests.e2e.cluster import PROJECT, Server

SHOWN_ADDRESS = "127.0.0.1:8000"


def read(page: str, server: Server, folder: Path) -> int:
    """Do all of a page, from a folder that holds the project's `adapters`; how many steps that were.

    Raises StepFailedError.
    """
    (folder / "adapters").symlink_to(PROJECT / "adapters")
    reader = Newcomer(folder, _environment(server, folder), folder / "no-server-is-started", ExitStack())
    steps = list(_steps(page, server))
    for step in steps:
        reader.do(step)
    return len(steps)


def _steps(page: str, server: Server) -> Iterator[Step]:
    address = server.url.removeprefix("http://")
    for section in sections_of((PROJECT / "docs" / page).read_text(encoding="utf-8")):
        for step in section.steps:
            match step:
                case Command(line):
                    yield replace(step, line=line.replace(SHOWN_ADDRESS, address))
                case Program(source):
                    yield Program(source.replace(SHOWN_ADDRESS, address))
                case _:
                    yield step


def _environment(server: Server, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(PROJECT),
        "HOME": str(folder),
        # Where the kernels lie that were compiled for the server.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        "ADAKRON_URL": server.url,
        "ADAKRON_STATE_DIR": str(server.state_dir),
        "NO_PROXY": "127.0.0.1",
    }
