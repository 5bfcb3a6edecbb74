"""Figures of single adapters for Prometheus, where there may be thousands: the busiest have series of their own.

At most `limit` adapters are named; what all others do is counted under one name, `_other`, which no adapter can have.
Every call is counted in exactly one series, the one its adapter has at that moment, and nothing is ever moved from one
to another. So each series only grows, and their sum is everything, whichever adapters are named:

    named       the first `limit` that are called, at once
    exchanged   when the figures are read, and a minute after the last time at the earliest: an adapter without a name
                that was called more than twice as often since then as the one of the named that was called least
                takes its place
    left        its series is in this reading for the last time, beside the one that takes its place, so that neither
                loses a call; then Prometheus takes it for ended. If it is named again it goes on from where it stood,
                as long as it is among those that left last

Memory is bounded by the limit and MOST_WATCHED, however many adapters there are. Belongs to one event loop.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

OTHER = "_other"
NAMED_ADAPTERS = 50
REVIEW_EVERY_S = 60.0
# A challenger must be this much busier, or two of a kind would take turns at every reading.
CLEAR_LEAD = 2
# Adapters without a name whose calls are counted between two reviews; a busy one is among the first of any minute.
MOST_WATCHED = 10_000
# Of those that left, how many times `limit` are remembered.
REMEMBERED = 10


@dataclass(slots=True)
class Figures:
    """Of one series, since it began. seconds: of calls that answered at least one row, from call to answer."""

    good_calls: int = 0
    failed_calls: int = 0
    good_rows: int = 0
    failed_rows: int = 0
    seconds: float = 0.0
    recent_calls: int = 0  # since the last review

    def count(self, good_rows: int, failed_rows: int, seconds: float) -> None:
        """One call; it failed where no row is good."""
        self.recent_calls += 1
        self.good_rows += good_rows
        self.failed_rows += failed_rows
        if good_rows:
            self.good_calls += 1
            self.seconds += seconds
        else:
            self.failed_calls += 1


class Busiest:
    """See the module's text. limit 0 names none."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._named: dict[str, Figures] = {}
        self._other = Figures()
        self._recent_others: Counter[str] = Counter()
        self._left: OrderedDict[str, Figures] = OrderedDict()
        self._reviewed_s = clock()

    def figures_of(self, name: str) -> Figures:
        """Where a call of this adapter is to be counted now."""
        figures = self._named.get(name)
        if figures is not None:
            return figures
        if len(self._named) < self._limit:
            return self._give_name(name)
        if self._limit and (name in self._recent_others or len(self._recent_others) < MOST_WATCHED):
            self._recent_others[name] += 1
        return self._other

    def read(self) -> dict[str, Figures]:
        """Every series by name, `_other` among them; those that leave now too."""
        leaving = self._review() if self._clock() - self._reviewed_s >= REVIEW_EVERY_S else {}
        return {**leaving, **self._named, OTHER: self._other}

    def _review(self) -> dict[str, Figures]:
        """Exchange; those that left."""
        leaving: dict[str, Figures] = {}
        self._reviewed_s = self._clock()
        by_calls = sorted(self._named, key=lambda name: self._named[name].recent_calls)
        for (challenger, calls), weakest in zip(self._recent_others.most_common(self._limit), by_calls, strict=False):
            if calls <= CLEAR_LEAD * self._named[weakest].recent_calls:
                break
            leaving[weakest] = self._left[weakest] = self._named.pop(weakest)
            self._give_name(challenger)
        while len(self._left) > REMEMBERED * self._limit:
            self._left.popitem(last=False)
        self._recent_others.clear()
        for figures in self._named.values():
            figures.recent_calls = 0
        return leaving

    def _give_name(self, name: str) -> Figures:
        figures = self._named[name] = self._left.pop(name, Figures())
        return figures
