"""A newcomer's way through docs/first-ten-minutes.md, run and timed: `python -m loadtests.newcomer --results DIR`.

Everything is new: a copy of what is checked in, an empty environment, an empty home folder. Each command of the
tutorial runs as it stands and must print what the tutorial shows. Writes newcomer.json, newcomer.md and server.log.

Exit codes: 0 every step did what it should, 1 one did not, 2 it could not begin.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from loadtests.server_process import PROJECT, STOP_WITHIN_S
from loadtests.tutorial import Command, File, Program, Section, Step, sections_of

TUTORIAL = PROJECT / "docs" / "first-ten-minutes.md"
SERVE = "adakron serve"
PORTS = (8000, 8404, 9101)  # the server's, and those of its HAProxy: as in the tutorial, none is moved
STEP_WITHIN_S = 900.0
READY_WITHIN_S = 300.0


class StepFailedError(Exception):
    """A step did not do what the tutorial says; the message shows what it printed."""


@dataclass(frozen=True, slots=True)
class Timed:
    """How long a section took its reader, typing apart, and how long it was since the beginning."""

    section: str
    seconds: float
    since_start_s: float


class Newcomer:
    """Does step after step in one folder; whatever was started is stopped when `opened` closes.

    What a command exports, later ones have, as in the terminal of a reader.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path, opened: ExitStack) -> None:
        self._folder, self._environment, self._log, self._opened = folder, dict(environment), log, opened

    def do(self, step: Step) -> None:
        """Raises StepFailedError."""
        match step:
            case File(path, content):
                (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self._folder / path).write_text(content, encoding="utf-8")
            case Command(line) if line == SERVE:
                self._serve()
            case Command(line):
                printed = self._run_line(line)
                if not step.fits(printed):
                    raise StepFailedError(f"$ {line}\nshould print\n{step.output}\nand printed\n{printed}")
            case Program(source):
                self._run(["python", "-c", source])

    def _run_line(self, line: str) -> str:
        with tempfile.NamedTemporaryFile(prefix="adakron-exported-") as exported:
            printed = self._run(["bash", "-c", f"trap 'env -0 >\"$0\"' EXIT\n{line}", exported.name])
            variables = Path(exported.name).read_text(encoding="utf-8").split("\0")
        self._environment = dict(variable.split("=", 1) for variable in variables if variable)
        return printed

    def _run(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StepFailedError(f"{command[2]}: {error}") from error
        if done.returncode:
            raise StepFailedError(f"{command[2]}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _serve(self) -> None:
        with self._log.open("wb") as output:
            server = subprocess.Popen(
                SERVE.split(),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                executable=shutil.which("adakron", path=self._environment["PATH"]),
            )
        self._opened.callback(_stop, server)
        deadline_s = time.monotonic() + READY_WITHIN_S
        while "\nStop:" not in (printed := self._log.read_text(encoding="utf-8")):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise StepFailedError(f"$ {SERVE}\ndid not start:\n{printed}")
            time.sleep(0.1)


def walk(sections: Sequence[Section], newcomer: Newcomer) -> list[Timed]:
    """Do all of it. Raises StepFailedError."""
    began_s, timed = time.monotonic(), []
    for section in sections:
        before_s = time.monotonic()
        for step in section.steps:
            newcomer.do(step)
        now_s = time.monotonic()
        timed.append(Timed(section.title, round(now_s - before_s, 1), round(now_s - began_s, 1)))
        print(f"{section.title}: {timed[-1].seconds} s", flush=True)
    return timed


def table(timed: Sequence[Timed]) -> str:
    """For the tutorial itself."""
    rows = [f"| {t.section} | {t.seconds:.0f} s | {t.since_start_s:.0f} s |" for t in timed]
    return "\n".join(["| section | takes | since the start |", "| --- | --- | --- |", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.newcomer", description="Run the tutorial, and time it.")
    parser.add_argument("--results", type=Path, default=PROJECT / "loadtests" / "results" / "newcomer")
    options = parser.parse_args(arguments)
    busy = [port for port in PORTS if _is_busy(port)]
    if busy:
        print(f"something listens on {busy}: the tutorial needs these ports", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _exit)  # so that the server is stopped on the way out
    options.results.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        root = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="adakron-newcomer-")))
        folder = _checkout(root / "adakron")
        environment = _environment(root, folder)
        newcomer = Newcomer(folder, environment, options.results / "server.log", opened)
        try:
            timed = walk(sections_of(TUTORIAL.read_text(encoding="utf-8")), newcomer)
        except StepFailedError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    document = {"sections": [asdict(t) for t in timed], **_conditions()}
    (options.results / "newcomer.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.results / "newcomer.md").write_text(table(timed) + "\n", encoding="utf-8")
    print(table(timed))
    return 0


def _checkout(folder: Path) -> Path:
    """What is checked in, without what lies around."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", "HEAD"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """Without settings of whoever runs this; the environment that the tutorial makes comes first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ADAKRON_", "RAY_", "PYTHON"))}
    home = root / "home"
    home.mkdir()
    path = os.pathsep.join([str(folder / ".venv" / "bin"), os.environ["PATH"]])
    return kept | {"HOME": str(home), "PATH": path, "HF_HUB_OFFLINE": "1"}


def _conditions() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # its own session: nothing but what it started
        server.wait()


def _is_busy(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
