"""What HTTP costs: Ray Serve and this API against uvicorn and against the engine alone: `python -m loadtests.http`.

    python -m loadtests.http                       some five minutes on two cores
    python -m loadtests.http --quick               under two; rough
    python -m loadtests.http --page docs/http.json    measures nothing: fills the figures of that file into docs/http.md

Two parts, one after the other; in each all systems are up at once and take turns, every other round backwards:

    with the engine   engine alone in this process, the data plane's application under uvicorn, `python -m server`
    without           an echo route, and the native route with an engine that answers at once, on uvicorn and Ray Serve

Writes http.json and a picture; prints a table a contest and every target as met or missed. Needs HAProxy, as the
server itself does. Reading order: http_outcome.py says what is asked for; http_stacks.py which servers there are;
http_client.py who asks them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from loadtests import http_outcome as outcome
from loadtests import http_report
from loadtests.http_client import AnswerError, drive, post
from loadtests.http_cpu import cpu_seconds, spent
from loadtests.http_outcome import Contest, Taken
from loadtests.samples import percentile
from loadtests.server_process import COMMAND, PROJECT, RunningServer, ServerFailedError, running_server
from loadtests.texts import made_up_texts

RESULTS = Path(__file__).resolve().parent / "results"
ADAPTERS = ("banking77", "clinc150", "snips", "sst2", "tweeteval_emotion")
NATIVE_PATH, ECHO_PATH = "/v1/classify", "/echo/classify"
BATCHES = 16
WARM_UP_S = 0.5
ECHO_WITHIN_S = 60.0
READY_WITHIN_S = 420.0  # a busy machine takes minutes for what a quiet one does in twenty seconds
# HAProxy hands its connections over to a new worker when an application comes up.
SETTLE_S = 3.0

Calls = Sequence[tuple[str, Sequence[str]]]
Run = Callable[[float], Taken]


class Scale(NamedTuple):
    """Rounds, and seconds of each system in each."""

    rounds: int
    seconds: float


FULL, QUICK = Scale(5, 3.0), Scale(2, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once. Returns the exit code: 0, whatever the figures; 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.http", description="Measure what HTTP costs.")
    parser.add_argument("--quick", action="store_true", help="two short rounds: rough")
    parser.add_argument("--replicas", type=int, default=1, help="of the server (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report is written")
    parser.add_argument("--page", type=Path, metavar="JSON", help="only fill the page of the same name from this file")
    options = parser.parse_args(arguments)
    if options.page is not None:
        page = options.page.with_suffix(".md")
        document = json.loads(options.page.read_text(encoding="utf-8"))
        page.write_text(http_report.filled(page.read_text(encoding="utf-8"), document), encoding="utf-8")
        return 0
    conditions = {**_machine(), "quick": options.quick, "replicas": options.replicas}
    print(", ".join(f"{key} {value}" for key, value in conditions.items()), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    try:
        contests = measure(QUICK if options.quick else FULL, options.replicas, options.results)
    except (ServerFailedError, AnswerError, OSError) as error:
        print(f"the benchmark could not run: {error}", file=sys.stderr)
        return 2
    _report(contests, conditions, options.results)
    return 0


def measure(scale: Scale, replicas: int, logs: Path) -> list[Contest]:
    """All contests. Raises ServerFailedError, AnswerError, OSError; what the servers say goes to files in `logs`."""
    return [*_with_engine(scale, replicas, logs), *_without_engine(scale, logs)]


def take_turns(title: str, runs: Mapping[str, Run], scale: Scale) -> Contest:
    """Every system in every round, in turns, every other round backwards; once shortly before, which does not count."""
    for run in runs.values():
        run(WARM_UP_S)
    rounds = []
    for number in range(scale.rounds):
        order = list(runs) if number % 2 == 0 else list(runs)[::-1]
        taken = {system: runs[system](scale.seconds) for system in order}
        rounds.append({system: taken[system] for system in runs})
    contest = Contest(title, rounds)
    print(http_report.table(contest.document()), "", sep="\n", flush=True)
    return contest


def _with_engine(scale: Scale, replicas: int, logs: Path) -> list[Contest]:
    from loadtests.http_engine import EngineAlone

    texts = made_up_texts(1, BATCHES * outcome.BATCH_ROWS).singles
    batches = [
        (ADAPTERS[n % len(ADAPTERS)], texts[n * outcome.BATCH_ROWS : (n + 1) * outcome.BATCH_ROWS])
        for n in range(BATCHES)
    ]
    singles = [(ADAPTERS[n % len(ADAPTERS)], [text]) for n, text in enumerate(texts)]
    engine = EngineAlone(_cores() // replicas or 1, {name: PROJECT / "adapters" / name for name in ADAPTERS})

    def alone(calls: Calls) -> Run:
        def run(seconds: float) -> Taken:
            taken_s, latencies_s = engine.classify(calls, seconds)
            return _taken(taken_s, latencies_s, len(calls[0][1]))

        return run

    with ExitStack() as running:
        plain = running.enter_context(_server(logs / "http-uvicorn.log", 1, _stack("uvicorn", "engine")))
        serve = running.enter_context(_server(logs / "http-serve.log", replicas, COMMAND))
        servers = {outcome.UVICORN: plain, outcome.SERVE: serve}
        return [
            take_turns(
                title,
                {
                    outcome.ENGINE: alone(calls),
                    **{system: _asked(server, NATIVE_PATH, calls, clients) for system, server in servers.items()},
                },
                scale,
            )
            for title, calls, clients in (
                (outcome.BATCHES_ONE, batches, 1),
                (outcome.BATCHES_FEW, batches, outcome.FEW_CLIENTS),
                (outcome.SINGLE, singles, 1),
            )
        ]


def _without_engine(scale: Scale, logs: Path) -> list[Contest]:
    singles = [(ADAPTERS[n % len(ADAPTERS)], [text]) for n, text in enumerate(made_up_texts(1, 256).singles)]
    with ExitStack() as running:
        servers = {
            system: running.enter_context(_server(logs / f"http-{stack}-stub.log", 1, _stack(stack, "stub")))
            for system, stack in ((outcome.UVICORN, "uvicorn"), (outcome.SERVE, "ray"))
        }
        for server in servers.values():
            _await_echo(server)
        routes = ((outcome.ECHO, ECHO_PATH), (outcome.STUB, NATIVE_PATH))
        return [
            take_turns(
                title,
                {
                    f"{system}, {route}": _asked(server, path, singles, clients)
                    for system, server in servers.items()
                    for route, path in routes
                },
                scale,
            )
            for title, clients in ((outcome.ROUTES_ONE, 1), (outcome.ROUTES, outcome.STUB_CLIENTS))
        ]


def _server(log: Path, replicas: int, command: Sequence[str]) -> AbstractContextManager[RunningServer]:
    return running_server(log, replicas, command=command, ready_within_s=READY_WITHIN_S)


def _stack(stack: str, engine: str) -> Sequence[str]:
    return (sys.executable, "-m", "loadtests.http_stacks", stack, engine)


def _asked(server: RunningServer, path: str, calls: Calls, clients: int) -> Run:
    url = f"{server.url}{path}"
    requests = [post(url, {"adapter": name, "inputs": texts if len(texts) > 1 else texts[0]}) for name, texts in calls]

    def run(seconds: float) -> Taken:
        before = cpu_seconds(server.pid)
        driven = drive(url, requests, connections=clients, seconds=seconds)
        cpu_s = spent(before, cpu_seconds(server.pid))
        return _taken(driven.seconds, driven.latencies_s, len(calls[0][1]), cpu_s, driven.client_cpu_s)

    return run


def _taken(
    seconds: float,
    latencies_s: Sequence[float],
    rows: int,
    cpu_s: Mapping[str, float] | None = None,
    client_cpu_s: float = 0.0,
) -> Taken:
    count, ordered_s = len(latencies_s), sorted(latencies_s)
    return Taken(
        rows_per_s=count * rows / seconds,
        requests_per_s=count / seconds,
        p50_ms=1000 * percentile(ordered_s, 0.5),
        p99_ms=1000 * percentile(ordered_s, 0.99),
        cpu_us={kind: 1e6 * spent_s / count for kind, spent_s in (cpu_s or {}).items()},
        client_cpu_us=1e6 * client_cpu_s / count,
    )


def _await_echo(server: RunningServer) -> None:
    deadline_s = time.monotonic() + ECHO_WITHIN_S
    with httpx.Client(base_url=server.url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            try:
                if client.post(ECHO_PATH, json={"adapter": "sst2", "inputs": "a text"}).status_code == 200:
                    time.sleep(SETTLE_S)
                    return
            except httpx.TransportError:
                pass  # HAProxy is reading its new configuration
            time.sleep(0.2)
    raise ServerFailedError(f"the echo route did not answer within {ECHO_WITHIN_S:g} s")


def _report(contests: Sequence[Contest], conditions: Mapping[str, Any], folder: Path) -> None:
    verdicts = outcome.judge({contest.title: contest for contest in contests})
    document = {
        "conditions": conditions,
        "targets": [verdict.document() for verdict in verdicts],
        "contests": [contest.document() for contest in contests],
    }
    path = folder / "http.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"report: {path}")
    try:
        http_report.plot(document, folder / "http.png")
    except ImportError:
        print("note: no picture, matplotlib is not installed")
    else:
        print(f"picture: {folder / 'http.png'}")
    for verdict in verdicts:
        print(f"target: {verdict}", flush=True)


def _machine() -> dict[str, Any]:
    import torch

    from loadtests import engine_machine

    facts = engine_machine.describe(torch.device("cpu"))
    kept = ("device", "cores", "load_average", "system", "python", "torch", "cpu_capability")
    return {**{key: facts[key] for key in kept}, "at": datetime.now(UTC).isoformat(timespec="seconds")}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
