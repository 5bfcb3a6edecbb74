"""Load for a minute, and a report: `python -m loadtests.run`, or `make load`.

Starts a server of its own (or asks the one at --url), lets the users of users.py at it, prints a table, and writes
summary.json, samples.csv, load.png and locust's own pages into a new folder below loadtests/results/.

Exit codes: 0 all was answered and every answer came from the adapter asked; 1 something was not; 2 it could not run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx

from loadtests import report
from loadtests.journal import conditions
from loadtests.samples import read_samples
from loadtests.server_process import PROJECT, ServerFailedError, running_server

REPLICAS = 2
RESULTS = PROJECT / "loadtests" / "results"
FINISH_WITHIN_S = 10  # for requests under way when the time is over
GRACE_S = 90  # for everything around the load itself: the probes before it, the pages after it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once. Returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _exit)  # so that the server is stopped on the way out
    folder = options.results / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    try:
        with _server(options, folder) as url:
            print(f"{options.users} users for {options.seconds} s against {url} ...", flush=True)
            info = _info(url)
            ran = _locust(url, options, folder)
    except (ServerFailedError, httpx.HTTPError) as error:
        print(f"the load test could not run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 2
    if not ran:
        return 2
    return conclude(folder, {**_conditions(options), "server": info})


def conclude(folder: Path, conditions: dict[str, Any]) -> int:
    """Print and write the report of what samples.csv and outcome.json in `folder` hold. Returns the exit code."""
    samples = read_samples(folder / "samples.csv")
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    summary = report.summarise(samples)
    found, notes = report.problems(summary, outcome), report.notes(outcome)
    verdict = {"passed": not found, "problems": found, "notes": notes}
    document = {**verdict, "conditions": conditions, **summary, "outcome": outcome}
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    report.plot(samples, folder / "load.png")
    print(report.table(summary))
    print(f"{outcome['adapters']} adapters, {outcome['artefacts_made']} artefacts made meanwhile")
    print(f"wrong-adapter answers: {outcome['wrong_rows']}")
    for line in notes:
        print(f"note: {line}")
    for line in found:
        print(f"FAILED: {line}")
    print(f"report: {folder}")
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.run", description="Load a server and check every answer."
    )
    parser.add_argument("--seconds", type=_bounded(1, 3600), default=60, help="how long (default: 60)")
    parser.add_argument(
        "--users", type=_bounded(5, 1000), default=16, help="at once, the registrar included (default: 16)"
    )
    parser.add_argument(
        "--url", type=_loopback, help="a server that runs already, on this machine; adapters come and go on it"
    )
    parser.add_argument(
        "--artefacts",
        type=Path,
        default=PROJECT / "adapters",
        help="adapters of the server's backbone (default: adapters/)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report's folder is made")
    return parser


def _bounded(least: int, most: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}; got {value}")
        return value

    return number


def _loopback(text: str) -> str:
    url = urlsplit(text)
    if url.scheme != "http" or url.hostname not in {"127.0.0.1", "localhost", "::1"}:
        raise argparse.ArgumentTypeError(f"expected http://127.0.0.1:PORT; got {text!r}")
    return text.rstrip("/")


@contextmanager
def _server(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    if options.url:
        yield options.url
        return
    print(f"starting a server with {REPLICAS} replicas ...", flush=True)
    with running_server(folder / "server.log", REPLICAS) as server:
        yield server.url


def _locust(url: str, options: argparse.Namespace, folder: Path) -> bool:
    """Run locust in a process of its own: it changes the socket and thread modules of whichever imports it."""
    command: list[str] = [sys.executable, "-m", "locust", "-f", str(PROJECT / "loadtests" / "users.py")]
    command += ["--headless", "--only-summary", "--loglevel", "WARNING", "--host", url]
    command += ["--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.seconds}s", "--stop-timeout", str(FINISH_WITHIN_S)]
    command += ["--artefacts", str(options.artefacts), "--outcome", str(folder), "--html", str(folder / "locust.html")]
    command += ["--csv", str(folder / "locust"), "--csv-full-history"]
    with (folder / "locust.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            process.wait(options.seconds + FINISH_WITHIN_S + GRACE_S)
        except subprocess.TimeoutExpired:
            print("the load generator did not end in time and was stopped", file=sys.stderr)
        finally:
            process.kill()
            process.wait()
    if not (folder / "outcome.json").exists():
        lines = (folder / "locust.log").read_text(encoding="utf-8").splitlines()[-10:]
        print("\n".join(["the load generator left no result:", *lines]), file=sys.stderr)
        return False
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    if "cannot_start" in outcome:
        print(outcome["cannot_start"], file=sys.stderr)
        return False
    return True


def _info(url: str) -> Any:
    reply = httpx.get(f"{url}/v1/info", timeout=30.0, trust_env=False)
    return reply.raise_for_status().json()


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to compare two reports."""
    return {
        "users": options.users,
        "replicas": None if options.url else REPLICAS,
        "texts": "labelled text" if os.environ.get("ADAKRON_DATA_DIR") else "made up",
        **conditions(),
    }


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
