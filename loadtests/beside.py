"""Registering beside steady traffic: `python -m loadtests.beside`.

Does it disturb those who only ask, and how soon does a new adapter answer? Phases with and without registrations take
turns, A B A B ..., on one server; within a phase calls start at a fixed rate, whatever the answers take, and every
latency counts from the moment at which its call was due.

    A    traffic alone
    B    the same, and adapters registered at --registrations a second; each is asked for at once, three times
    C    registrations alone, one after the other

In A the shipped adapters are asked for as often as the new ones in B, so that registering is the only difference.

Reported: p50 and p99 of the calls in each phase, B's p99 over that of the A before it, and the time from sending an
artefact to the 201, after which every replica serves it. The server is one of its own: two replicas, the default
backbone and the shipped adapters.

Exit codes: 0 within what is wanted (p99 at most 1.15 times, median 100 ms to servable); 1 not, or a reply was wrong;
2 it could not run.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.artefacts import ArtefactMaker, SignatureArtefact
from loadtests.journal import conditions
from loadtests.samples import percentile
from loadtests.server_process import ServerFailedError, running_server
from loadtests.targets import Target, list_targets
from loadtests.texts import made_up_texts

BOTTLENECK = 48  # as real adapters have: 600 kB with the default backbone
REPLICAS = 2
ROWS_A_CALL = 4
CONNECTIONS = 32
ASKED_AFTER_201 = 3
ALONE = 50
SETTLE_S = 2.0
TIMEOUT_S = 30.0
WANTED_RATIO = 1.15
WANTED_SERVABLE_S = 0.1


@dataclass
class Phase:
    """latencies_s of calls, servable_s of registrations, and what went wrong."""

    kind: str
    latencies_s: list[float] = field(default_factory=list)
    servable_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def p(self, share: float) -> float:
        """A percentile of the latencies. Raises ValueError without any."""
        return percentile(sorted(self.latencies_s), share)


class Beside:
    """Phases against one server.

    calls_a_s, registrations_a_s  rates; seconds: of a phase
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        targets: Sequence[Target],
        maker: ArtefactMaker,
        *,
        calls_a_s: float,
        registrations_a_s: float,
        seconds: float,
    ) -> None:
        self._client = client
        self._targets = [target for target in targets if not target.takes_pair]
        self._maker = maker
        self._calls_a_s, self._registrations_a_s, self._seconds = calls_a_s, registrations_a_s, seconds
        self._rng = Random(0)
        self._texts = made_up_texts(0).singles
        self._serial = 0

    async def warm(self) -> None:
        """A phase that does not count."""
        await self._traffic(Phase("warm"))

    async def alone(self) -> Phase:
        """A: traffic alone, of as many calls as in B."""
        phase = Phase("A")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._traffic(phase))
            group.create_task(self._at_rate(self._registrations_a_s, lambda due_s: self._ask_for_shipped(phase)))
        return phase

    async def beside(self) -> Phase:
        """B: traffic and registrations; what was registered is removed afterwards, outside of the measurement."""
        phase = Phase("B")
        names: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(self._traffic(phase))
            group.create_task(self._at_rate(self._registrations_a_s, lambda due_s: self._register(phase, names)))
        await self._remove(names)
        return phase

    async def registrations(self, count: int) -> Phase:
        """C: so many registrations, one after the other, without traffic."""
        phase = Phase("C")
        names: list[str] = []
        for _ in range(count):
            await self._register(phase, names)
        await self._remove(names)
        return phase

    async def _traffic(self, phase: Phase) -> None:
        await self._at_rate(self._calls_a_s, lambda due_s: self._call(phase, due_s))

    async def _at_rate(self, rate: float, start: Any) -> None:
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * self._seconds)):
                due_s = began_s + number / rate
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                group.create_task(start(due_s))

    async def _call(self, phase: Phase, due_s: float) -> None:
        items = [
            {"adapter": self._rng.choice(self._targets).name, "text": self._rng.choice(self._texts)}
            for _ in range(ROWS_A_CALL)
        ]
        reply = await self._client.post("/v1/classify", json={"items": items})
        phase.latencies_s.append(time.monotonic() - due_s)
        if reply.status_code != 200:
            phase.faults.append(f"a call was answered {reply.status_code} {reply.text[:200]}")

    async def _register(self, phase: Phase, names: list[str]) -> None:
        artefact = self._maker.make(self._serial % self._maker.count)
        self._serial += 1
        name = f"beside/n{self._serial}"
        names.append(name)
        began_s = time.monotonic()
        reply = await self._client.put(f"/v1/adapters/{name}", content=artefact.data)
        phase.servable_s.append(time.monotonic() - began_s)
        if reply.status_code != 201:
            phase.faults.append(f"{name} was answered {reply.status_code} {reply.text[:200]}")
            return
        for _ in range(ASKED_AFTER_201):
            if words := await self._not_served(name, artefact):
                phase.faults.append(words)

    async def _ask_for_shipped(self, phase: Phase) -> None:
        name = self._rng.choice(self._targets).name
        for _ in range(ASKED_AFTER_201):
            reply = await self._ask(name)
            if reply.status_code != 200:
                phase.faults.append(f"{name} was answered {reply.status_code} {reply.text[:200]}")

    async def _ask(self, name: str) -> httpx.Response:
        return await self._client.post(
            "/v1/classify", json={"adapter": name, "inputs": [self._rng.choice(self._texts)]}
        )

    async def _not_served(self, name: str, artefact: SignatureArtefact) -> str | None:
        reply = await self._ask(name)
        if reply.status_code != 200:
            return f"{name} was registered, and answers {reply.status_code}"
        found = (reply.json()["sha256"], reply.json()["results"][0]["label"])
        wanted = (artefact.signature.sha256, artefact.signature.label)
        return None if found == wanted else f"{name}: expected {wanted}; got {found}"

    async def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            await self._client.delete(f"/v1/adapters/{name}")
        await asyncio.sleep(SETTLE_S)


def measure(url: str, *, rounds: int, calls_a_s: float, registrations_a_s: float, seconds: float) -> list[Phase]:
    """All phases, in the order in which they were held."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        targets = list_targets(client)
        maker = AdapterMaker(client.get("/v1/info").raise_for_status().json(), bottleneck=BOTTLENECK)
    rates = {"calls_a_s": calls_a_s, "registrations_a_s": registrations_a_s, "seconds": seconds}
    return asyncio.run(_phases(url, targets, maker, rounds, rates))


async def _phases(
    url: str, targets: Sequence[Target], maker: ArtefactMaker, rounds: int, rates: Mapping[str, float]
) -> list[Phase]:
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        work = Beside(http, targets, maker, **rates)
        await work.warm()
        phases = []
        for _ in range(rounds):
            phases += [await work.alone(), await work.beside()]
            print(f"p99 {phases[-2].p(0.99) * 1000:.0f} ms, beside {phases[-1].p(0.99) * 1000:.0f} ms", flush=True)
        return [*phases, await work.registrations(ALONE)]


def summary(phases: Sequence[Phase]) -> dict[str, Any]:
    """ratio: the median of B's p99 over A's, round by round; the times to servable in seconds, beside and alone."""
    alone, beside = ([phase for phase in phases if phase.kind == kind] for kind in "AB")
    ratios = [b.p(0.99) / a.p(0.99) for a, b in zip(alone, beside, strict=True)]
    servable = [value for phase in beside for value in phase.servable_s]
    quiet = [value for phase in phases if phase.kind == "C" for value in phase.servable_s]
    return {
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "servable_beside_s": statistics.median(servable),
        "servable_alone_s": statistics.median(quiet),
        "registrations": len(servable) + len(quiet),
        "faults": [words for phase in phases for words in phase.faults],
    }


def shortfalls(found: dict[str, Any]) -> list[str]:
    """What is not as wanted."""
    short = [f"{len(found['faults'])} faults: {found['faults'][0]}"] if found["faults"] else []
    if found["ratio"] > WANTED_RATIO:
        short.append(f"p99 beside registrations is {found['ratio']:.2f} times that without; wanted {WANTED_RATIO}")
    if found["servable_alone_s"] > WANTED_SERVABLE_S:
        short.append(
            f"{found['servable_alone_s'] * 1000:.0f} ms from sending to servable; wanted {WANTED_SERVABLE_S * 1000:.0f}"
        )
    return short


def table(phases: Sequence[Phase]) -> str:
    """A line a phase."""
    lines = ["| phase | calls | p50 ms | p99 ms | registered | median ms to servable |", "|" + " --- |" * 6]
    for phase in phases:
        calls = [f"{phase.p(share) * 1000:.1f}" for share in (0.5, 0.99)] if phase.latencies_s else ["", ""]
        servable = f"{statistics.median(phase.servable_s) * 1000:.0f}" if phase.servable_s else ""
        cells = [phase.kind, str(len(phase.latencies_s)), *calls, str(len(phase.servable_s)), servable]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.beside", description="Measure what registrations cost those who only ask."
    )
    parser.add_argument("--rounds", type=int, default=5, help="of a phase without and one with (default: 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a phase (default: 20)")
    parser.add_argument("--calls", type=float, default=20.0, help=f"a second, of {ROWS_A_CALL} rows (default: 20)")
    parser.add_argument("--registrations", type=float, default=5.0, help="a second (default: 5)")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args(arguments)
    rates = {"calls_a_s": options.calls, "registrations_a_s": options.registrations, "seconds": options.seconds}
    with tempfile.TemporaryDirectory(prefix="adakron-beside-") as folder:
        try:
            settings = {"backbone": options.backbone}
            with running_server(Path(folder) / "server.log", REPLICAS, settings=settings) as server:
                phases = measure(server.url, rounds=options.rounds, **rates)
        except (ServerFailedError, httpx.HTTPError) as error:
            print(f"could not run: {error}", file=sys.stderr)
            return 2
    found = summary(phases)
    print(table(phases))
    print(
        f"p99 beside over alone: {found['ratio']:.2f} ({', '.join(f'{ratio:.2f}' for ratio in found['ratios'])}); "
        f"to servable: {found['servable_alone_s'] * 1000:.0f} ms alone, {found['servable_beside_s'] * 1000:.0f} beside"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        document = {"conditions": conditions(), "setup": {**rates, "rounds": options.rounds}, **found}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for words in shortfalls(found):
        print(words, file=sys.stderr)
    return 1 if shortfalls(found) else 0


if __name__ == "__main__":
    sys.exit(main())
