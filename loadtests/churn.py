"""Whose answer is it, while adapters come and go: `python -m loadtests.churn --n 200000`.

Clients ask for many adapters a call, and some hang up in the middle; meanwhile others register, replace, roll back and
delete those adapters, and send broken files. Every adapter is made so that its answers tell which it is, layers and
head apart (`loadtests.adapter_maker`). Every row is held against what its name may have been while the call was under
way:

    wrong    the name, version, bytes or label of another
    mixed    one call, one name, two versions
    fault    any other reply that was not promised: an error, or a change that did not do what it says

A row counts when it is answered. The server is one of its own: two replicas, a small backbone of random weights by
default. Progress is kept in --out, round by round; an interrupted run is taken up again there, on a new server.

Exit codes: 0 no wrong, mixed or faulty answer; 1 there was one; 2 it could not run.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.checker import Checker
from loadtests.journal import FAULTS_KEPT, Journal, OtherRunError
from loadtests.registrar import Registrar, Write
from loadtests.server_process import ServerFailedError, running_server
from loadtests.texts import made_up_texts
from loadtests.workload import Ask, Call

BACKBONE = "random:tiny"
REPLICAS = 2
READERS = 8
WRITERS = 4
NAMES_A_WRITER = 8
ROWS_A_CALL = 16
ROWS_A_CHANGE = 100  # 2,000 changes in 200,000 rows
CANCEL_SHARE = 0.03
CANCEL_WITHIN_S = 0.03
ROUND_ROWS = 20_000
TIMEOUT_S = 30.0
STALLED_S = 60.0  # without one row answered
OCTETS = {"content-type": "application/octet-stream"}


class Churn:
    """One round on one server: `run` answers so many rows, and deletes in the end what it has registered.

    client  its base_url is the server's; connections are kept
    """

    def __init__(self, client: httpx.AsyncClient, maker: AdapterMaker, journal: Journal, seed: int) -> None:
        self._client = client
        self._journal = journal
        self._rng = Random(seed)
        self._texts = made_up_texts(seed, 200).singles
        self._registrars = [
            Registrar(maker, _names(seed, writer), first=writer, step=WRITERS) for writer in range(WRITERS)
        ]
        timelines = {name: line for one in self._registrars for name, line in one.timelines.items()}
        self._checker = Checker([], timelines)
        self._rows = self._changes = 0
        self._wanted = 0
        self._answered_at_s = time.monotonic()

    async def run(self, rows: int) -> None:
        """Ask until so many rows are answered while the adapters change, or until too much is wrong to go on."""
        self._wanted = rows
        for registrar in self._registrars:
            for _ in range(NAMES_A_WRITER):
                await self._write(registrar.plan(self._rng, time.monotonic()), registrar)
        self._changes = 0
        self._answered_at_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for registrar in self._registrars:
                group.create_task(self._keep_changing(registrar, Random(self._rng.random())))
            for _ in range(READERS):
                group.create_task(self._keep_asking(Random(self._rng.random())))
        if self._rows < rows:
            self._journal.fault("fault", f"the round ended after {self._rows} of {rows} rows")
        for registrar in self._registrars:
            for write in registrar.farewell(time.monotonic()):
                await self._write(write, registrar)

    @property
    def _goes_on(self) -> bool:
        is_stalled = time.monotonic() > self._answered_at_s + STALLED_S
        return self._rows < self._wanted and len(self._journal.faults) < FAULTS_KEPT and not is_stalled

    async def _keep_changing(self, registrar: Registrar, rng: Random) -> None:
        while self._goes_on:
            if (
                self._changes * ROWS_A_CHANGE > self._rows and registrar.live()
            ):  # in step with the rows, not as fast as it can
                await asyncio.sleep(0.005)
                continue
            self._changes += 1
            await self._write(registrar.plan(rng, time.monotonic()), registrar)

    async def _write(self, write: Write, registrar: Registrar) -> None:
        reply = await self._client.request(
            write.method, write.path, content=write.data, json=write.json, headers=OCTETS if write.data else None
        )
        fault = registrar.judge(write, reply.status_code, _body(reply), time.monotonic())
        self._journal.counts[write.kind] += 1
        if fault:
            self._journal.fault("fault", fault)

    async def _keep_asking(self, rng: Random) -> None:
        while self._goes_on:
            live = [name for registrar in self._registrars for name in registrar.live()]
            if not live:
                await asyncio.sleep(0.01)
                continue
            asks = tuple(Ask(rng.choice(live), rng.choice(self._texts), None) for _ in range(ROWS_A_CALL))
            call = Call("churn", {"items": [{"adapter": ask.adapter, "text": ask.text} for ask in asks]}, asks)
            hangs_up = rng.random() < CANCEL_SHARE
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(rng.uniform(0, CANCEL_WITHIN_S) if hangs_up else None):
                    reply = await self._client.post("/v1/classify", json=call.body)
            except TimeoutError:
                self._journal.counts["cancelled calls"] += 1
                continue
            except httpx.TransportError as error:
                self._journal.fault("fault", f"{type(error).__name__} {error}")
                continue
            self._judge(call, reply, started_s, time.monotonic())

    def _judge(self, call: Call, reply: httpx.Response, started_s: float, ended_s: float) -> None:
        body, counts = _body(reply), self._journal.counts
        verdict = self._checker.check(call, reply.status_code, body, started_s, ended_s)
        counts["calls"] += 1
        if verdict.is_absent:
            counts["calls for a name just deleted"] += 1
            return
        if verdict.fault:
            self._journal.fault("fault", verdict.fault)
            return
        for words in verdict.wrong_rows:
            self._journal.fault("wrong", words)
        for words in mixed_versions(body):
            self._journal.fault("mixed", words)
        counts["rows"] += len(call.asks)
        self._rows += len(call.asks)
        self._answered_at_s = ended_s


def mixed_versions(body: Any) -> list[str]:
    """Names that one reply gave several versions of: a call resolves each name once."""
    versions = defaultdict(set)
    for result in body["results"]:
        versions[result["adapter"]].add(result["version"])
    return [f"{name} was versions {sorted(found)} in one call" for name, found in versions.items() if len(found) > 1]


def run(rows: int, journal: Journal, log: Path, *, backbone: str, device_budget_bytes: int | None = None) -> None:
    """Answer rows until `rows` are in the journal, round by round, on one server. Raises ServerFailedError."""
    settings: dict[str, object] = {"backbone": backbone, "adapters_dir": log.parent}
    if device_budget_bytes is not None:
        settings["device_budget_bytes"] = device_budget_bytes
    with running_server(log, REPLICAS, settings=settings) as server:
        maker = AdapterMaker(httpx.get(f"{server.url}/v1/info", trust_env=False).raise_for_status().json())
        while (left := rows - journal.counts["rows"]) > 0 and not journal.faults:
            started_s = time.monotonic()
            asyncio.run(_round(server.url, maker, journal, min(left, ROUND_ROWS)))
            journal.seconds += time.monotonic() - started_s
            journal.counts["rounds"] += 1
            journal.save()
            print(
                f"{journal.counts['rows']} rows, {changes(journal)} changes, {len(journal.faults)} faults", flush=True
            )


async def _round(url: str, maker: AdapterMaker, journal: Journal, rows: int) -> None:
    limits = httpx.Limits(max_connections=READERS + WRITERS, max_keepalive_connections=READERS + WRITERS)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
        await Churn(client, maker, journal, journal.counts["rounds"]).run(rows)


def changes(journal: Journal) -> int:
    """How many changes of the catalogue were acknowledged."""
    return sum(journal.counts[kind] for kind in ("register", "activate", "delete"))


def table(journal: Journal) -> str:
    """What was counted, a line each."""
    found = {"wrong": 0, "mixed": 0, "fault": 0} | dict(journal.counts)
    lines = [f"| {name} | {found[name]:,} |" for name in sorted(found, key=lambda name: (name in _VERDICTS, name))]
    return "\n".join(["| what | count |", "| --- | --- |", *lines, f"| seconds | {journal.seconds:.0f} |"])


_VERDICTS = ("wrong", "mixed", "fault")


def _names(seed: int, writer: int) -> list[str]:
    return [f"churn/{seed}-{writer}-{number}" for number in range(NAMES_A_WRITER)]


def _body(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return reply.text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.churn", description="Hold every answer to its adapter while adapters change."
    )
    parser.add_argument("--n", type=int, default=200_000, help="rows to have answered (default: 200000)")
    parser.add_argument("--backbone", default=BACKBONE, help=f"default: {BACKBONE}")
    parser.add_argument("--device-budget-bytes", type=int, help="make the replicas evict (default: they hold all)")
    parser.add_argument("--out", type=Path, help="JSON file of the progress and the result")
    options = parser.parse_args(arguments)
    setup = {"command": "churn", "backbone": options.backbone, "device_budget_bytes": options.device_budget_bytes}
    with tempfile.TemporaryDirectory(prefix="adakron-churn-") as folder:
        try:
            journal = Journal(options.out, setup)
            run(
                options.n,
                journal,
                Path(folder) / "server.log",
                backbone=options.backbone,
                device_budget_bytes=options.device_budget_bytes,
            )
        except (OtherRunError, ServerFailedError, httpx.HTTPError) as error:
            print(f"could not run: {error}", file=sys.stderr)
            return 2
    print(table(journal))
    for words in journal.faults:
        print(words, file=sys.stderr)
    return 1 if journal.faults else 0


if __name__ == "__main__":
    sys.exit(main())
