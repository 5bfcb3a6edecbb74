"""Killing a replica under load: `python -m loadtests.replica_kills --n 20`.

Clients keep asking signature adapters of a server of this program's own; one of its replicas is killed, and the calls
that were under way at that moment are followed:

    in flight    sent and not answered when the replica's sockets were closed: on it or on another
    failed       of those, answered with an error or not at all; what the client's one repetition makes of them
    resent       by the proxy on its own account, to another replica: what it says in its statistics
    others       calls that were sent later and failed all the same: none may
    recovered    seconds until as many replicas as before hold every adapter

Exit codes: 0 no answer was wrong, only calls in flight failed, and the repetition of each succeeded; 1 otherwise; 2 it
could not run. Progress is kept in --out, kill by kill.
"""

import argparse
import asyncio
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.artefacts import SignatureArtefact
from loadtests.footprint import processes
from loadtests.journal import Journal, OtherRunError
from loadtests.server_process import RunningServer, ServerFailedError, running_server
from loadtests.texts import made_up_texts

REPLICAS = 2
ADAPTERS = 20
CLIENTS = 16
ROWS_A_CALL = 8
STEADY_S = (1.0, 3.0)
RECOVERED_WITHIN_S = 60.0
REPEATED_AFTER_S = 0.5  # as this project's own client waits; at once it may meet the dying replica again
TIMEOUT_S = 30.0
ASKED_FOR_REPLICAS = 12
STATISTICS_URL = "http://127.0.0.1:9101/metrics"
STATISTICS_EVERY_S = 0.02
_RESENT = re.compile(r'^haproxy_backend_(?:retry|redispatch)_warnings_total\{proxy="http-clf"\} (\S+)$', re.MULTILINE)


class Killing:
    """Kills against one running server, one at a time, while clients keep asking."""

    def __init__(self, server: RunningServer, http: httpx.AsyncClient, journal: Journal, rng: Random) -> None:
        self._server, self._http, self._journal, self._rng = server, http, journal, rng
        self._texts = made_up_texts(0).singles
        self._adapters: dict[str, SignatureArtefact] = {}
        self._in_flight: set[int] = set()
        self._at_kill: set[int] = set()
        self._calls = 0
        self._is_over = False
        self.recovered_s: list[float] = []
        self.resent = 0

    async def register(self, maker: AdapterMaker) -> None:
        """What the clients will ask for."""
        for number in range(ADAPTERS):
            artefact = maker.make(number)
            (await self._http.put(f"/v1/adapters/kills/n{number}", content=artefact.data)).raise_for_status()
            self._adapters[f"kills/n{number}"] = artefact

    async def run(self, kills: int) -> None:
        """So many kills under load."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_proxy())
            for _ in range(CLIENTS):
                group.create_task(self._keep_asking())
            try:
                for _ in range(kills):
                    await self._kill()
            finally:
                self._is_over = True

    async def _kill(self) -> None:
        await asyncio.sleep(self._rng.uniform(*STEADY_S))
        victim = self._rng.choice([one.pid for one in processes(self._server.pid).values() if one.role == "clf"])
        former = await self._replicas()
        self._at_kill = set(self._in_flight)
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        while has_sockets(victim) and time.monotonic() < killed_s + RECOVERED_WITHIN_S:  # calls still reach it
            self._at_kill |= self._in_flight
            await asyncio.sleep(0.001)
        counts = self._journal.counts
        counts["kills"] += 1
        counts["in flight"] += len(self._at_kill)
        while not await self._is_recovered(former):
            if time.monotonic() > killed_s + RECOVERED_WITHIN_S:
                self._journal.fault("fault", f"not {REPLICAS} whole replicas within {RECOVERED_WITHIN_S:g} s")
                break
            await asyncio.sleep(0.1)
        self.recovered_s.append(time.monotonic() - killed_s)
        self._journal.save(recovered_s=self.recovered_s, resent_by_the_proxy=self.resent)

    async def _replicas(self) -> set[str]:
        """The replicas that answer."""
        found = set()
        for _ in range(ASKED_FOR_REPLICAS):
            with suppress(httpx.TransportError):
                reply = await self._http.get("/v1/info")
                if reply.status_code == 200:
                    found.add(str(reply.json()["replica"]))
        return found

    async def _is_recovered(self, former: set[str]) -> bool:
        now = await self._replicas()
        if len(now) != REPLICAS or now == former:
            return False
        resident = []
        for name in self._adapters:
            shown = await self._http.get(f"/v1/adapters/{name}")
            resident.append(len(shown.json()["resident"]) if shown.status_code == 200 else 0)
        return min(resident) == REPLICAS

    async def _keep_asking(self) -> None:
        while not self._is_over:
            self._calls += 1
            number = self._calls
            names = [self._rng.choice(list(self._adapters)) for _ in range(ROWS_A_CALL)]
            self._in_flight.add(number)
            fault = await self._ask(names)
            self._in_flight.discard(number)
            self._journal.counts["calls"] += 1
            if fault is None:
                continue
            if number not in self._at_kill:
                self._journal.fault("others failed", fault)
                continue
            self._journal.counts["in flight and failed"] += 1
            self._journal.counts[f"failed: {fault}"] += 1
            await asyncio.sleep(REPEATED_AFTER_S)
            if (again := await self._ask(names)) is not None:
                self._journal.fault("repetition failed", again)

    async def _ask(self, names: Sequence[str]) -> str | None:
        """What is wrong with the answer, or None."""
        items = [{"adapter": name, "text": self._rng.choice(self._texts)} for name in names]
        try:
            reply = await self._http.post("/v1/classify", json={"items": items})
        except httpx.TransportError as error:
            return type(error).__name__
        if reply.status_code != 200:
            return f"HTTP {reply.status_code}"
        for name, result in zip(names, reply.json()["results"], strict=True):
            signature = self._adapters[name].signature
            if (result.get("sha256"), result.get("label")) != (signature.sha256, signature.label):
                self._journal.fault("wrong", f"{name}: expected {signature}; got {result}")
        return None

    async def _watch_proxy(self) -> None:
        """Add up what the proxy resends; its counters begin again at 0 when it learns of another replica."""
        before = 0.0
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            while not self._is_over:
                with suppress(httpx.TransportError):
                    now = resent((await http.get(STATISTICS_URL)).text)
                    self.resent += round(now - before if now >= before else now)
                    before = now
                await asyncio.sleep(STATISTICS_EVERY_S)


def has_sockets(pid: int) -> bool:
    """Whether a process still has its sockets: a killed one gives back its memory first.

    They are closed when its last thread has ended, whether anybody has waited for it or not.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def resent(statistics_text: str) -> float:
    """Requests to the replicas that HAProxy sent again, from its page of statistics."""
    return sum(float(value) for value in _RESENT.findall(statistics_text))


async def _run(server: RunningServer, kills: int, journal: Journal) -> Killing:
    limits = httpx.Limits(max_connections=CLIENTS + 4, max_keepalive_connections=CLIENTS + 4)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        killing = Killing(server, http, journal, Random(journal.counts["kills"]))
        await killing.register(AdapterMaker((await http.get("/v1/info")).raise_for_status().json()))
        await killing.run(kills)
    return killing


def table(journal: Journal, killing: Killing) -> str:
    """What was counted, a line each."""
    rows = [(name, f"{count:,}") for name, count in sorted(journal.counts.items())]
    rows += [
        ("resent by the proxy, as it says", str(killing.resent)),
        (
            "seconds to recover",
            f"median {statistics.median(killing.recovered_s):.1f}, worst {max(killing.recovered_s):.1f}",
        ),
    ]
    return "\n".join(["| what | count |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.replica_kills", description="Kill replicas under load, and follow what was in flight."
    )
    parser.add_argument("--n", type=int, default=20, help="kills (default: 20)")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--out", type=Path, help="JSON file of the progress and the result")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="adakron-kills-") as folder:
        try:
            journal = Journal(options.out, {"command": "replica_kills", "backbone": options.backbone})
            if (left := options.n - journal.counts["kills"]) <= 0:
                print(f"{journal.counts['kills']} kills are in {options.out} already")
                return 0
            settings = {"backbone": options.backbone, "adapters_dir": folder}
            with running_server(Path(folder) / "server.log", REPLICAS, settings=settings) as server:
                killing = asyncio.run(_run(server, left, journal))
        except (OtherRunError, ServerFailedError, httpx.HTTPError) as error:
            print(f"could not run: {error}", file=sys.stderr)
            return 2
    print(table(journal, killing))
    for words in journal.faults:
        print(words, file=sys.stderr)
    return 1 if journal.faults else 0


if __name__ == "__main__":
    sys.exit(main())
