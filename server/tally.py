"""What one process counted for each adapter: calls, rows, batches and where the time went, by content.

Bounded: beyond MAX_TALLIED adapters, those not asked for longest are forgotten. Knows nothing of names, which may come
to mean other content; whoever reports looks up which content a version has.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import Protocol

MAX_TALLIED = 10_000


class Times(Protocol):
    """Where a call's time went, in seconds."""

    @property
    def tokenize_s(self) -> float: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def forward_s(self) -> float: ...


@dataclass(slots=True)
class Count:
    """Since the process began. Calls are counted once for each adapter that takes part; times are of whole calls.

    batches      that held at least one row
    last_s       when a call was last answered, in seconds since 1970; 0 for never
    """

    good_calls: int = 0
    failed_calls: int = 0
    rows: int = 0
    batches: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    last_s: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Count)}
        return Count(**{**sums, "last_s": max(self.last_s, other.last_s)})


class Tally:
    """Counts by sha256. Any thread."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, Count] = OrderedDict()
        self._lock = threading.Lock()

    def ran(self, sha256s: Iterable[str]) -> None:
        """A batch ran with rows of these."""
        with self._lock:
            for sha256 in sha256s:
                self._count(sha256).batches += 1

    def answered(self, sha256: str, good_rows: int, failed_rows: int, times: Times | None) -> None:
        """A call was answered; it failed where no row is good. times: None where it never came to its end."""
        with self._lock:
            count = self._count(sha256)
            count.good_calls += good_rows > 0
            count.failed_calls += good_rows == 0 and failed_rows > 0
            count.rows += good_rows
            count.last_s = time.time()
            if times is not None and good_rows > 0:
                count.tokenize_s += times.tokenize_s
                count.queue_s += times.queue_s
                count.forward_s += times.forward_s

    def counts(self, sha256s: Collection[str] | None = None) -> dict[str, Count]:
        """Copies of the counts of these, where there are any; None for all."""
        with self._lock:
            wanted = self._counts if sha256s is None else [sha256 for sha256 in sha256s if sha256 in self._counts]
            return {sha256: replace(self._counts[sha256]) for sha256 in wanted}

    def _count(self, sha256: str) -> Count:
        count = self._counts.get(sha256)
        if count is None:
            count = self._counts[sha256] = Count()
            if len(self._counts) > MAX_TALLIED:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(sha256)
        return count


def joined(tallies: Iterable[dict[str, Count]]) -> dict[str, Count]:
    """The sums over several processes."""
    whole: dict[str, Count] = {}
    for tally in tallies:
        for sha256, count in tally.items():
            whole[sha256] = whole[sha256] + count if sha256 in whole else count
    return whole
