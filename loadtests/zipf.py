"""Popularity as it is in practice: a few adapters get most of the traffic."""

from bisect import bisect
from itertools import accumulate
from random import Random


class Zipf:
    """Draws ranks 0 .. count-1 with probability proportional to 1 / (rank + 1) ** exponent.

    Raises ValueError if there is nothing to draw from, or if the exponent would favour the last.
    """

    def __init__(self, count: int, exponent: float = 1.0) -> None:
        if count < 1 or exponent < 0:
            raise ValueError(f"expected at least one rank and an exponent from 0 up; got {count} and {exponent}")
        self._cumulative = list(accumulate(1.0 / (rank + 1) ** exponent for rank in range(count)))

    def draw(self, rng: Random) -> int:
        # random() < 1, but the product may round up to the sum itself, one past the last rank.
        rank = bisect(self._cumulative, rng.random() * self._cumulative[-1])
        return min(rank, len(self._cumulative) - 1)
