"""What one process answered with each version of each adapter: calls, rows, latencies, labels.

Counted by name and version, as traffic belongs to a name: the same bytes under two names have two distributions. A
version that becomes active begins anew, so that what is compared with its reference is what it serves now. Memory is
bounded: beyond MOST_VERSIONS versions or MOST_LABELS labels in all, versions that were not called longest are
forgotten, and begin anew when they are called again. Any thread.
"""

import threading
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from adakron import Result

MOST_VERSIONS = 10_000
MOST_LABELS = 200_000
# Upper bounds in seconds, eight to a doubling: a quantile between two of them is off by a tenth at most.
BOUNDS_S = tuple(0.00025 * 2 ** (step / 8) for step in range(137))


class Latencies:
    """How often a call took how long, in buckets between BOUNDS_S; the last one is for whatever is longer."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * (len(BOUNDS_S) + 1)))
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def add(self, other: "Latencies") -> None:
        for bucket, count in enumerate(other.counts):
            self.counts[bucket] += count
        self.sum_s += other.sum_s

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of the calls was done, in its bucket as if they lay evenly; None for none."""
        wanted = share * sum(self.counts)
        if not wanted:
            return None
        below = 0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= wanted:
                lower = BOUNDS_S[bucket - 1] if bucket else 0.0
                upper = BOUNDS_S[min(bucket, len(BOUNDS_S) - 1)]
                return lower + (upper - lower) * (wanted - below) / count
            below += count
        raise AssertionError("the buckets hold fewer than their sum")

    @property
    def mean(self) -> float | None:
        """Seconds a call; None for none."""
        calls = sum(self.counts)
        return self.sum_s / calls if calls else None


@dataclass(slots=True)
class Served:
    """Of one version. Latencies are of calls that answered at least one row.

    since_s     seconds since 1970, from when it is counted
    labels      index of a label -> rows it was answered for; a row of a multi-label adapter may count for any number
    withheld    rows of a single-label adapter whose best score was below its threshold: no label was answered
    """

    since_s: float
    good_calls: int = 0
    failed_calls: int = 0
    good_rows: int = 0
    failed_rows: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    labels: dict[int, int] = field(default_factory=dict)
    withheld: int = 0

    def note(self, results: Sequence[Result], failed_rows: int, seconds: float) -> None:
        """One call; it failed where it has no results."""
        self.good_rows += len(results)
        self.failed_rows += failed_rows
        if not results:
            self.failed_calls += 1
            return
        self.good_calls += 1
        self.latencies.observe(seconds)
        for result in results:
            self._note_labels(result)

    def add(self, other: "Served") -> None:
        """What another process served of the same version, and since when at the earliest."""
        self.since_s = min(self.since_s, other.since_s)
        self.good_calls += other.good_calls
        self.failed_calls += other.failed_calls
        self.good_rows += other.good_rows
        self.failed_rows += other.failed_rows
        self.withheld += other.withheld
        self.latencies.add(other.latencies)
        for label, rows in other.labels.items():
            self.labels[label] = self.labels.get(label, 0) + rows

    def _note_labels(self, result: Result) -> None:
        config = result.config
        if config is None or config.problem_type == "regression":
            return
        if config.problem_type == "multi_label_classification":
            for label in (result.scores >= config.multi_label_threshold).nonzero()[0].tolist():
                self.labels[label] = self.labels.get(label, 0) + 1
            return
        best = int(result.scores.argmax())
        threshold = config.calibration.threshold
        if threshold is not None and result.scores[best] < threshold:
            self.withheld += 1
        else:
            self.labels[best] = self.labels.get(best, 0) + 1


class ServedCounts:
    """See the module's text."""

    def __init__(
        self,
        *,
        most_versions: int = MOST_VERSIONS,
        most_labels: int = MOST_LABELS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._most_versions = most_versions
        self._most_labels = most_labels
        self._clock = clock
        self._versions: OrderedDict[tuple[str, int], Served] = OrderedDict()
        self._labels = 0
        self._lock = threading.Lock()

    def note(self, name: str, version: int, results: Sequence[Result], failed_rows: int, seconds: float) -> None:
        """A call was answered; see `Served.note`."""
        key = (name, version)
        with self._lock:
            served = self._versions.get(key)
            if served is None:
                served = self._versions[key] = Served(self._clock())
            else:
                self._versions.move_to_end(key)
            before = len(served.labels)
            served.note(results, failed_rows, seconds)
            self._labels += len(served.labels) - before
            while len(self._versions) > 1 and (
                len(self._versions) > self._most_versions or self._labels > self._most_labels
            ):
                self._labels -= len(self._versions.popitem(last=False)[1].labels)

    def begin(self, name: str, version: int) -> None:
        """The version has just become active: what it served before counts no more."""
        with self._lock:
            former = self._versions.pop((name, version), None)
            self._labels -= 0 if former is None else len(former.labels)
            self._versions[name, version] = Served(self._clock())

    def of(self, name: str, versions: Iterable[int]) -> dict[int, Served]:
        """Copies of what is counted for these versions."""
        with self._lock:
            return {
                version: _copy(self._versions[name, version])
                for version in versions
                if (name, version) in self._versions
            }


def _copy(served: Served) -> Served:
    copy = Served(served.since_s)
    copy.add(served)
    return copy


def joined(parts: Iterable[dict[int, Served]]) -> dict[int, Served]:
    """The sums over several processes."""
    whole: dict[int, Served] = {}
    for part in parts:
        for version, served in part.items():
            whole.setdefault(version, Served(served.since_s)).add(served)
    return whole
