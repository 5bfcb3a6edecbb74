"""What the HTTP benchmark measured, and what it has to reach."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENGINE, UVICORN, SERVE = "engine alone", "uvicorn", "Ray Serve"
ECHO, STUB = "echo", "native, stub engine"
BATCH_ROWS = 32
FEW_CLIENTS = 4
STUB_CLIENTS = 8
BATCHES_ONE, BATCHES_FEW = "batches of 32, one client", f"batches of 32, {FEW_CLIENTS} clients"
SINGLE = "single requests, one client"
ROUTES = f"single requests, {STUB_CLIENTS} clients"
ROUTES_ONE = "single requests, one client, no engine"

MIN_SHARE = 0.85
MAX_ADDED_MS = 2.0
MAX_COST = 1.3


@dataclass(frozen=True, slots=True)
class Taken:
    """One system in one round.

    cpu_us         of the server a request, by process; empty for the engine alone
    client_cpu_us  of the client a request
    """

    rows_per_s: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float] = field(default_factory=dict)
    client_cpu_us: float = 0.0

    @property
    def server_cpu_us(self) -> float:
        return sum(self.cpu_us.values())

    def figure(self, name: str) -> float:
        """One of these by its name."""
        value: float = getattr(self, name)
        return value


@dataclass(frozen=True, slots=True)
class Contest:
    """Systems that took turns: rounds[i] has each system's figures of round i."""

    title: str
    rounds: Sequence[Mapping[str, Taken]]

    @property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(system for taken in self.rounds for system in taken))

    def median(self, system: str, figure: str) -> float:
        """Of one figure over the rounds."""
        return statistics.median(taken[system].figure(figure) for taken in self.rounds)

    def cpu_us(self, system: str) -> dict[str, float]:
        """Of each kind of process, the median over the rounds; those under a microsecond are left out."""
        kinds = dict.fromkeys(kind for taken in self.rounds for kind in taken[system].cpu_us)
        medians = {
            kind: statistics.median(taken[system].cpu_us.get(kind, 0.0) for taken in self.rounds) for kind in kinds
        }
        return {kind: us for kind, us in sorted(medians.items(), key=lambda item: -item[1]) if us >= 1}

    def ratio(self, system: str, against: str, figure: str) -> float:
        """The median over the rounds of the ratio within each."""
        return statistics.median(taken[system].figure(figure) / taken[against].figure(figure) for taken in self.rounds)

    def difference(self, system: str, against: str, figure: str) -> float:
        """The median over the rounds of the difference within each."""
        return statistics.median(taken[system].figure(figure) - taken[against].figure(figure) for taken in self.rounds)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        figures = ("rows_per_s", "requests_per_s", "p50_ms", "p99_ms", "server_cpu_us", "client_cpu_us")
        return {
            "contest": self.title,
            "rounds": len(self.rounds),
            "systems": [
                {
                    "system": system,
                    **{figure: round(self.median(system, figure), 3) for figure in figures},
                    "cpu_us": {kind: round(us, 1) for kind, us in self.cpu_us(system).items()},
                }
                for system in self.systems
            ],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, whether it was met, and by how much."""

    title: str
    is_met: bool
    figure: str

    def __str__(self) -> str:
        return f"{self.title}: {'met' if self.is_met else 'missed'}, {self.figure}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"title": self.title, "met": self.is_met, "figure": self.figure}


def judge(contests: Mapping[str, Contest]) -> list[Verdict]:
    """The three targets, and beside each the same of a neighbouring contest, for the reader."""
    verdicts = []
    for title in (BATCHES_FEW, BATCHES_ONE):
        share = contests[title].ratio(SERVE, ENGINE, "rows_per_s")
        verdicts.append(
            Verdict(
                f"{title}: rows/s against the engine alone",
                share >= MIN_SHARE,
                f"{share:.3f} (>= {MIN_SHARE}, {share - MIN_SHARE:+.3f})",
            )
        )
    added_ms = contests[SINGLE].difference(SERVE, ENGINE, "p50_ms")
    verdicts.append(
        Verdict(
            "a single request: added to the engine's p50",
            added_ms <= MAX_ADDED_MS,
            f"{added_ms:.2f} ms (<= {MAX_ADDED_MS:g} ms, {added_ms - MAX_ADDED_MS:+.2f} ms)",
        )
    )
    cost = contests[ROUTES].ratio(f"{SERVE}, {STUB}", f"{SERVE}, {ECHO}", "server_cpu_us")
    verdicts.append(
        Verdict(
            "the native route's CPU against an echo route's on Ray Serve",
            cost <= MAX_COST,
            f"{cost:.2f} (<= {MAX_COST}, {cost - MAX_COST:+.2f})",
        )
    )
    return verdicts
