"""Ten thousand registered adapters: `python -m loadtests.many --n 10000 --state DIR`.

Registers artefacts of their own, up to 1,000 a call, on a server of its own; turns the pages of the list; starts the
server again on the same state; and asks for adapters drawn at random, each held to its label and bytes.

    register    seconds in all, and per 1,000
    list        seconds for all pages of GET /v1/adapters
    start       seconds from launching the server to GET /readyz, with all of them registered
    memory      MiB of each replica and of the admin plane, before and after the restart, and the most that the admin
                plane took while it registered
    first asks  milliseconds, for adapters that nobody has asked for since the start

The state stays in --state: an interrupted run registers only what is not there yet.

Exit codes: 0 all are there, each as it was sent, and ready in time; 1 not; 2 it could not run.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.artefacts import ArtefactMaker
from loadtests.footprint import MIB, processes
from loadtests.journal import conditions
from loadtests.samples import percentile
from loadtests.server_process import RunningServer, ServerFailedError, launch, stop, wait_until_ready

BACKBONE = "random:tiny"
BOTTLENECK = 4  # with the default backbone, 48 makes artefacts of real size: 700 kB
REPLICAS = 2
A_CALL = 1000
PAGE = 1000
ASKED = 300
WATCH_EVERY_S = 0.5
READY_WITHIN_S = 600.0
WANTED_READY_S = 30.0
TIMEOUT_S = 60.0
TRIES_WITHOUT_PROGRESS = 3
TEXT = "Whatever this says, the label is known."


class NotRegisteredError(Exception):
    """The server refuses what it should take; the message says what it answers."""


def name_of(number: int) -> str:
    """The name of adapter `number`."""
    return f"many/n{number:06}"


def listed(http: httpx.Client) -> tuple[dict[str, str], float]:
    """Name -> sha256 of all that the list shows, and the seconds that its pages took."""
    began_s = time.monotonic()
    found: dict[str, str] = {}
    query: dict[str, str | int] = {"limit": PAGE}
    while True:
        page = http.get("/v1/adapters", params=query).raise_for_status().json()
        found |= {entry["name"]: entry["sha256"] for entry in page["adapters"]}
        if page["next"] is None:
            return found, time.monotonic() - began_s
        query["cursor"] = page["next"]


def register(http: httpx.Client, maker: ArtefactMaker, numbers: Sequence[int]) -> list[float]:
    """Register them all, and again those that a call had no time for. Returns the seconds of each call.

    Raises NotRegisteredError where calls bring nothing new.
    """
    left, seconds, idle = list(numbers), [], 0
    while left:
        some = left[:A_CALL]
        parts = [(name_of(n), (name_of(n), maker.make(n).data, "application/octet-stream")) for n in some]
        began_s = time.monotonic()
        # A thousand artefacts of real size take longer than the 25 s that every request has.
        # The other header keeps Ray from reading all of them into memory first.
        headers = {"x-request-timeout-seconds": "300", "x-request-disconnect-disabled": "?1"}
        reply = http.post("/v1/adapters/bulk", files=parts, headers=headers, timeout=300)
        seconds.append(time.monotonic() - began_s)
        if reply.status_code not in (200, 202):
            raise NotRegisteredError(f"{reply.status_code} {reply.text[:300]}")
        results = reply.json()["results"]
        done = {result["name"] for result in results if "error" not in result}
        left = [n for n in left if name_of(n) not in done]
        idle = 0 if done else idle + 1
        if idle == TRIES_WITHOUT_PROGRESS:
            raise NotRegisteredError(str(results[0])[:300])
        print(f"{len(numbers) - len(left)} of {len(numbers)} registered", flush=True)
    return seconds


def ask(http: httpx.Client, maker: ArtefactMaker, numbers: Sequence[int]) -> tuple[list[float], list[str]]:
    """Ask each for one text. Returns the seconds of each, sorted, and what was not as it should be."""
    seconds, faults = [], []
    for number in numbers:
        began_s = time.monotonic()
        reply = http.post("/v1/classify", json={"adapter": name_of(number), "inputs": [TEXT]})
        seconds.append(time.monotonic() - began_s)
        body = reply.json()
        found = (body.get("sha256"), body["results"][0]["label"]) if reply.status_code == 200 else reply.status_code
        signature = maker.make(number).signature
        if found != (signature.sha256, signature.label):
            faults.append(f"{name_of(number)}: expected {signature}; got {found} {reply.text[:200]}")
    return sorted(seconds), faults


def memory_mib(server: RunningServer) -> dict[str, list[float]]:
    """Role -> MiB of each process of ours."""
    found: dict[str, list[float]] = {}
    for process in processes(server.pid).values():
        if process.is_ours:
            found.setdefault(process.role, []).append(round(process.memory_bytes / MIB, 1))
    return found


@contextmanager
def peak_of_admin(server: RunningServer) -> Iterator[list[float]]:
    """A list with one number in the end: the most MiB that the admin plane was seen to take meanwhile."""
    over, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not over.wait(WATCH_EVERY_S):
            peak[0] = max(peak[0], *memory_mib(server).get("admin", [0.0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def run(
    count: int,
    folder: Path,
    *,
    backbone: str,
    settings: Mapping[str, object],
    bottleneck: int = BOTTLENECK,
    seed: int = 0,
) -> dict[str, Any]:
    """All of it. Raises ServerFailedError, NotRegisteredError, httpx.HTTPError."""
    no_adapters = folder / "no-adapters"
    no_adapters.mkdir(exist_ok=True)
    configured = {"backbone": backbone, "adapters_dir": no_adapters, **settings}
    found: dict[str, Any] = {"adapters": count}
    with _started(folder, configured) as (server, http, found["start_before_s"]):
        info = http.get("/v1/info").raise_for_status().json()
        maker = AdapterMaker(info, bottleneck=bottleneck)
        found["memory_before_mib"] = memory_mib(server)
        there, _ = listed(http)
        missing = [n for n in range(count) if name_of(n) not in there]
        with peak_of_admin(server) as peak:
            calls = register(http, maker, missing)
        found |= {"registered_now": len(missing), "register_s": sum(calls), "register_call_s": calls}
        found |= {"artefact_bytes": len(maker.make(0).data), "admin_peak_mib": peak[0]}
        there, found["list_s"] = listed(http)
        found["memory_full_mib"] = memory_mib(server)
    faults = [
        f"{name_of(n)} is not listed as it was sent"
        for n in range(count)
        if there.get(name_of(n)) != maker.make(n).signature.sha256
    ]
    with _started(folder, configured) as (server, http, found["start_s"]):
        found["memory_started_mib"] = memory_mib(server)
        seconds, wrong = ask(http, maker, Random(seed).sample(range(count), min(ASKED, count)))
        found |= {"first_ask_p50_s": statistics.median(seconds), "first_ask_p99_s": percentile(seconds, 0.99)}
        found["memory_asked_mib"] = memory_mib(server)
    return {**found, "faults": faults + wrong}


@contextmanager
def _started(folder: Path, settings: Mapping[str, object]) -> Iterator[tuple[RunningServer, httpx.Client, float]]:
    """A server on the state of `folder`, a client of it, and the seconds from its launch until it was ready."""
    log, state_dir = folder / "server.log", folder / "state"
    began_s = time.monotonic()
    process, url = launch(log, replicas=REPLICAS, state_dir=state_dir, settings=settings)
    try:
        wait_until_ready(process, url, log, READY_WITHIN_S)
        seconds = time.monotonic() - began_s
        with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
            yield RunningServer(url, process.pid, state_dir), http, seconds
    finally:
        stop(process, log)


def table(found: Mapping[str, Any]) -> str:
    """A line for each figure."""
    calls = sorted(found["register_call_s"])
    rows = [
        ("adapters", f"{found['adapters']:,} of {found['artefact_bytes']:,} bytes"),
        ("registered in this run", f"{found['registered_now']:,}"),
    ]
    if calls:
        rows.append(("registering them, s", f"{found['register_s']:.1f}, in {len(calls)} calls"))
        rows.append(("most memory of the admin plane meanwhile, MiB", f"{found['admin_peak_mib']:.0f}"))
    rows += [
        ("all pages of the list, s", f"{found['list_s']:.2f}"),
        ("start to ready, s", f"{found['start_s']:.1f}; before any was registered {found['start_before_s']:.1f}"),
        (
            "first ask of an adapter, ms",
            f"p50 {1000 * found['first_ask_p50_s']:.1f}, p99 {1000 * found['first_ask_p99_s']:.1f}",
        ),
    ]
    for moment in ("before", "full", "started", "asked"):
        rows.append((f"memory {moment}, MiB", ", ".join(f"{k} {v}" for k, v in found[f"memory_{moment}_mib"].items())))
    return "\n".join(["| what | found |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def shortfalls(found: Mapping[str, Any]) -> list[str]:
    """What is not as wanted."""
    short = list(found["faults"])
    if found["start_s"] > WANTED_READY_S:
        short.append(f"ready after {found['start_s']:.1f} s; wanted {WANTED_READY_S:g}")
    return short


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.many", description="Register very many adapters, and start a server that has them."
    )
    parser.add_argument("--n", type=int, default=10_000, help="adapters (default: 10000)")
    parser.add_argument("--state", type=Path, required=True, help="folder to keep, and to go on from")
    parser.add_argument("--backbone", default=BACKBONE, help=f"default: {BACKBONE}")
    parser.add_argument("--bottleneck", type=int, default=BOTTLENECK, help=f"size of each (default: {BOTTLENECK})")
    parser.add_argument("--device-budget-bytes", type=int, help="of each replica (default: no limit)")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    settings = {"device_budget_bytes": options.device_budget_bytes} if options.device_budget_bytes else {}
    try:
        found = run(
            options.n, options.state, backbone=options.backbone, settings=settings, bottleneck=options.bottleneck
        )
    except (ServerFailedError, NotRegisteredError, httpx.HTTPError) as error:
        print(f"could not run: {error}", file=sys.stderr)
        return 2
    print(table(found))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        setup = {"backbone": options.backbone, "bottleneck": options.bottleneck, **settings}
        document = {"conditions": conditions(), **setup, **found}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for words in shortfalls(found):
        print(words, file=sys.stderr)
    return 1 if shortfalls(found) else 0


if __name__ == "__main__":
    sys.exit(main())
