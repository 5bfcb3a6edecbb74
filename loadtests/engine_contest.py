"""Timing systems against each other: in turns, in one run, so that a machine that slows down slows down all of them.

A contest runs its entries round by round, every other round backwards. Two of them are compared round by round, and
the median of these ratios is what counts. Knows callables and clocks; nothing of what is timed.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ROUNDS = 300

Run = Callable[[], Any]
Round = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of `count` values."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a contest may take.

    budget_s    for all rounds; each entry has an equal share and sits out when its runs, had all been as fast as its
                fastest, fill it: a slow one does not keep the fast ones from being measured often, and one that the
                machine held up once is not left behind
    min_rounds  rounds that every entry takes part in, whatever its share
    deadline_s  on `clock`: after it no run is started
    """

    budget_s: float
    min_rounds: int = 5
    deadline_s: float = float("inf")


def take_turns(
    runs: Mapping[str, Run], patience: Patience, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Seconds of each entry, round by round; an entry that sits a round out is absent from it.

    One that the deadline left no time for is absent from all of them. Each entry runs once before the rounds; this
    counts only if it takes more than half the budget, or if there is time for no other run. Python's garbage collector
    waits until the contest is over.
    """
    share_s = patience.budget_s / len(runs)
    fastest_s = dict.fromkeys(runs, float("inf"))
    counts = dict.fromkeys(runs, 0)
    warm_up: dict[str, float] = {}
    rounds: list[dict[str, float]] = []

    def timed(name: str) -> float:
        start = clock()
        runs[name]()
        seconds = clock() - start
        fastest_s[name] = min(fastest_s[name], seconds)
        return seconds

    gc.collect()
    gc.disable()
    try:
        for name in runs:
            if clock() >= patience.deadline_s:
                break
            warm_up[name] = timed(name)
        long = {name: seconds for name, seconds in warm_up.items() if seconds > patience.budget_s / 2}
        if long:
            rounds.append(long)
            counts.update(dict.fromkeys(long, 1))
        while len(rounds) < MAX_ROUNDS:
            order = list(runs) if len(rounds) % 2 == 0 else list(runs)[::-1]
            taken: dict[str, float] = {}
            for name in order:
                waiting = counts[name] < patience.min_rounds or counts[name] * fastest_s[name] < share_s
                if waiting and clock() < patience.deadline_s:
                    taken[name] = timed(name)
                    counts[name] += 1
            if not taken:
                break
            rounds.append(taken)
    finally:
        gc.enable()
    last_resort = {name: seconds for name, seconds in warm_up.items() if not counts[name]}
    return [last_resort | rounds[0], *rounds[1:]] if rounds else [last_resort]


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles. Raises ValueError for no values."""
    if not values:
        raise ValueError("expected at least one value")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def seconds_of(rounds: Sequence[Round], name: str) -> Spread:
    """Of one entry over all rounds it took part in. Raises ValueError if there is none."""
    return spread([seconds[name] for seconds in rounds if name in seconds])


def speed_ratio(rounds: Sequence[Round], name: str, against: str) -> Spread | None:
    """How many times as fast as `against` the entry `name` is, round by round; None if one of them never ran.

    Where they share no round, which a deadline can bring about, it is the one ratio of their medians.
    """
    if not all(any(entry in seconds for seconds in rounds) for entry in (name, against)):
        return None
    ratios = [seconds[against] / seconds[name] for seconds in rounds if name in seconds and against in seconds]
    return spread(ratios or [seconds_of(rounds, against).median / seconds_of(rounds, name).median])
