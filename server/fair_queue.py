"""A queue with lanes, from which batches are cut: by an exact budget, and fairly between the lanes.

Semantics: every lane has a clock, the cost it has been served. `take` serves the lane whose clock is lowest, first in
first out within it, until the budget is spent. A lane that was empty starts at the clock of the lane served last, so
that it is next in line and cannot claim the time it was away. Thousands of rows waiting in one lane delay another
lane's single row by one batch at most.

Not safe for threads. Knows nothing of what waits in it.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# A batch nearly full is not worth a search through thousands of lanes for the one row that would just fit.
MAX_MISFITS = 16


class _Lane(Generic[T]):
    __slots__ = ("clock", "entries", "name")

    def __init__(self, name: str, clock: int) -> None:
        self.name = name
        self.clock = clock
        self.entries: deque[tuple[T, int]] = deque()


class FairQueue(Generic[T]):
    """See the module's text. `len()` and `cost` count what waits, including what `take` will find dead."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane[T]] = {}
        self._order: list[tuple[int, int, _Lane[T]]] = []  # heap of (clock, tie, lane), one entry a lane
        self._clock = 0
        self._ties = 0
        self._length = 0
        self.cost = 0

    def __len__(self) -> int:
        return self._length

    def push(self, lane_name: str, entry: T, cost: int) -> None:
        """Add one entry at the end of its lane. `cost` is in the budget's unit, at least 1."""
        lane = self._lanes.get(lane_name)
        if lane is None:
            lane = self._lanes[lane_name] = _Lane(lane_name, self._clock)
            self._enter(lane)
        lane.entries.append((entry, cost))
        self._length += 1
        self.cost += cost

    def take(self, budget: int, is_alive: Callable[[T], bool]) -> list[T]:
        """Cut the next batch: entries whose costs sum to at most `budget`, or one single entry that costs more.

        An entry that is not alive is dropped and costs nothing. Empty only where nothing alive waits.
        """
        batch: list[T] = []
        left = budget
        misfits: list[_Lane[T]] = []
        while self._order and left > 0 and len(misfits) < MAX_MISFITS:
            lane = heapq.heappop(self._order)[2]
            self._drop_dead(lane, is_alive)
            if not lane.entries:
                del self._lanes[lane.name]
                continue
            entry, cost = lane.entries[0]
            if cost > left and batch:
                misfits.append(lane)
                continue
            lane.entries.popleft()
            self._length -= 1
            self.cost -= cost
            batch.append(entry)
            left -= cost
            self._clock = max(self._clock, lane.clock)
            lane.clock += cost
            if lane.entries:
                self._enter(lane)
            else:
                del self._lanes[lane.name]
        for lane in misfits:  # with clocks unchanged they come first in the next batch
            self._enter(lane)
        return batch

    def drain(self) -> list[T]:
        """Take everything out, dead or alive, in no order."""
        entries = [entry for lane in self._lanes.values() for entry, _ in lane.entries]
        self._lanes.clear()
        self._order.clear()
        self._length = self.cost = 0
        return entries

    def _enter(self, lane: _Lane[T]) -> None:
        self._ties += 1
        heapq.heappush(self._order, (lane.clock, self._ties, lane))

    def _drop_dead(self, lane: _Lane[T], is_alive: Callable[[T], bool]) -> None:
        while lane.entries and not is_alive(lane.entries[0][0]):
            self.cost -= lane.entries.popleft()[1]
            self._length -= 1
