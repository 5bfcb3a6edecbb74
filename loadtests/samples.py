"""What a load run measured, one sample a request, and exact percentiles of it.

Locust's own percentiles are rounded (above 100 ms to 10 ms); these come from every request.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Outcome = Literal["ok", "absent", "refused", "failed", "wrong"]
CLASSIFY_KINDS = ("single", "batch", "pair", "mixed")


class Sample(NamedTuple):
    """One request.

    started_s   since the run began
    latency_s   until the whole reply was there
    status      HTTP status, 0 where no reply came
    rows        texts answered; adapters: how many different ones were asked
    outcome     ok | absent: 404, rightly, while an adapter was being removed | refused: 429 | failed | wrong: some row
                came from another adapter
    """

    started_s: float
    latency_s: float
    kind: str
    status: int
    rows: int
    adapters: int
    outcome: str


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted `values` that at least `share` of them (0 < share <= 1) do not exceed: nearest rank.

    Raises ValueError if there are no values, or the share is outside its range.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"expected values and a share in (0, 1]; got {len(values)} and {share}")
    # share * len may exceed the exact product by a rounding error, which ceil would turn into a whole rank.
    return values[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """A CSV file with a line of names; times to the microsecond."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows((f"{s.started_s:.6f}", f"{s.latency_s:.6f}", *s[2:]) for s in samples)


def read_samples(path: Path) -> list[Sample]:
    """The inverse of `write_samples`. Raises FileNotFoundError."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        return [
            Sample(float(a), float(b), kind, int(c), int(d), int(e), outcome) for a, b, kind, c, d, e, outcome in rows
        ]
