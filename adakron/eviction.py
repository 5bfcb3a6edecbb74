"""Which adapter to give up first: the one worth least, by its uses, its room and what bringing it back would cost.

    worth = log2(uses) + log2(cost_s / size_bytes)        uses: decayed, halved by every HALF_LIFE uses of any adapter

Instead of decaying the uses of all adapters, `used_again` counts a use made at time t for 2^(t / HALF_LIFE): the order
is the same, and the worth of what is not used stands still. So a heap keeps it: `Ranking`.

Frequency x cost / size is GreedyDual-Size-Frequency (Cherkasova, HPL-98-69). Its aging by the worth of what was evicted
last forgets too fast for steady traffic: on Zipf 1.0 over 1,000 adapters with room for 250 it hits 77.6 % where
counting with a half-life hits 79.9 %.

Knows numbers; nothing of tensors, adapters or time in seconds.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

HALF_LIFE = 65_536
SPARE_ENTRIES = 64

T = TypeVar("T", bound=Hashable)


def first_score(clock: int) -> float:
    """The score of what was never used, made known at `clock`: half a use."""
    return clock / HALF_LIFE - 1.0


def used_again(score: float, clock: int) -> float:
    """log2 of the uses, one more of them at `clock`; `clock` counts the uses of everything and never falls."""
    age = clock / HALF_LIFE
    return math.log2(2.0 ** (score - age) + 1.0) + age


def worth(score: float, cost_s: float, size_bytes: int) -> float:
    """See the module's text."""
    return score + math.log2(cost_s) - math.log2(size_bytes)


class Ranking(Generic[T]):
    """Items, to be taken from the one worth least. Not safe for threads.

    The worth of an item may rise at any time, untold; where it falls, `add` the item again. Adding costs O(log n), and
    so does finding the lowest but for items that may not be taken, which are passed over one by one.
    """

    def __init__(self, worth_of: Callable[[T], float]) -> None:
        self._worth_of = worth_of
        self._heap: list[tuple[float, int, T]] = []
        self._entries: dict[T, int] = {}  # item -> the tie of its valid entry
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: T) -> None:
        """Rank an item; one that is ranked already is ranked anew."""
        tie = next(self._ties)
        self._entries[item] = tie
        heapq.heappush(self._heap, (self._worth_of(item), tie, item))

    def discard(self, item: T) -> None:
        self._entries.pop(item, None)
        if len(self._heap) > 2 * len(self._entries) + SPARE_ENTRIES:
            # Entries that count no more would keep their items alive for as long as nobody looks for the lowest.
            self._heap = [entry for entry in self._heap if self._entries.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def lowest(self, may_go: Callable[[T], bool]) -> tuple[float, T] | None:
        """The worth and the item worth least of those that may go; it stays ranked. None where none may."""
        passed: list[tuple[float, int, T]] = []
        found: tuple[float, T] | None = None
        while self._heap and found is None:
            entered, tie, item = self._heap[0]
            if self._entries.get(item) != tie:
                heapq.heappop(self._heap)
                continue
            now = self._worth_of(item)
            if now > entered:
                heapq.heapreplace(self._heap, (now, tie, item))
            elif may_go(item):
                found = (now, item)
            else:
                passed.append(heapq.heappop(self._heap))
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found
