"""What users ask: bodies of POST /v1/classify, with a note of what was asked of whom.

Adapters are drawn by popularity (Zipf), in the order the server lists them; adapters that change during the run get a
share of their own. Every fifth text or so is a probe: a text whose answer was recorded before the load began.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtests.targets import Target
from loadtests.texts import Texts
from loadtests.zipf import Zipf

BATCH_ROWS = (8, 32)
PROBES = 4
PROBE_SHARE = 0.2
CHANGING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Ask:
    """One text for one adapter. probe: its number among the probes, None for any other text."""

    adapter: str
    text: str
    text_pair: str | None
    probe: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request. kind: what it counts as in the report. asks: its rows, in order."""

    kind: str
    body: dict[str, Any]
    asks: tuple[Ask, ...]

    @property
    def adapters(self) -> int:
        """How many different adapters it names."""
        return len({ask.adapter for ask in self.asks})


class Workload:
    """Draws requests over `targets` and over whatever `changing` lists at that moment (they take single texts).

    Raises ValueError if no target takes single texts: most kinds of request would have nobody to ask.
    """

    def __init__(self, targets: Sequence[Target], texts: Texts, changing: Callable[[], Sequence[str]] = tuple) -> None:
        self._targets = targets
        self._singles = [target for target in targets if not target.takes_pair]
        self._pairs = [target for target in targets if target.takes_pair]
        if not self._singles:
            raise ValueError("expected at least one adapter for single texts on the server; found none")
        self._zipf = {count: Zipf(count) for count in {len(targets), len(self._singles), len(self._pairs)} if count}
        self._texts = texts
        self._changing = changing

    @property
    def has_pairs(self) -> bool:
        """Whether any target takes text pairs."""
        return bool(self._pairs)

    def single(self, rng: Random) -> Call:
        """One text for one adapter."""
        return self._one_adapter("single", self._draw_single(rng), 1, rng)

    def pair(self, rng: Random) -> Call:
        """One text pair for one adapter. Raises IndexError without `has_pairs`."""
        target = self._pairs[self._zipf[len(self._pairs)].draw(rng)]
        return self._one_adapter("pair", (target.name, True), 1, rng)

    def batch(self, rng: Random) -> Call:
        """Between 8 and 32 texts or pairs for one adapter."""
        return self._one_adapter("batch", self._draw_any(rng), rng.randint(*BATCH_ROWS), rng)

    def mixed(self, rng: Random) -> Call:
        """Between 8 and 32 rows, each for an adapter drawn by itself."""
        asks = tuple(self._ask(*self._draw_any(rng), rng) for _ in range(rng.randint(*BATCH_ROWS)))
        items = [{"adapter": ask.adapter, **_input(ask)} for ask in asks]
        return Call("mixed", {"items": items}, asks)

    def probes(self) -> list[Call]:
        """One request for each target and probe, asking for every label's score."""
        calls = []
        for target in self._targets:
            for number in range(PROBES):
                ask = self._probe(target.name, target.takes_pair, number)
                calls.append(Call("probe", {"adapter": target.name, "inputs": [_input(ask)], "top_k": None}, (ask,)))
        return calls

    def _one_adapter(self, kind: str, drawn: tuple[str, bool], rows: int, rng: Random) -> Call:
        asks = tuple(self._ask(*drawn, rng) for _ in range(rows))
        inputs = [ask.text if ask.text_pair is None else _input(ask) for ask in asks]
        return Call(kind, {"adapter": drawn[0], "inputs": inputs}, asks)

    def _draw_single(self, rng: Random) -> tuple[str, bool]:
        """Name of an adapter for single texts, and False."""
        if rng.random() < CHANGING_SHARE and (changing := self._changing()):
            return rng.choice(changing), False
        return self._singles[self._zipf[len(self._singles)].draw(rng)].name, False

    def _draw_any(self, rng: Random) -> tuple[str, bool]:
        """Name of an adapter, and whether it takes pairs."""
        if rng.random() < CHANGING_SHARE and (changing := self._changing()):
            return rng.choice(changing), False
        target = self._targets[self._zipf[len(self._targets)].draw(rng)]
        return target.name, target.takes_pair

    def _ask(self, adapter: str, takes_pair: bool, rng: Random) -> Ask:
        if rng.random() < PROBE_SHARE:
            return self._probe(adapter, takes_pair, rng.randrange(PROBES))
        if takes_pair:
            return Ask(adapter, *rng.choice(self._texts.pairs))
        return Ask(adapter, rng.choice(self._texts.singles), None)

    def _probe(self, adapter: str, takes_pair: bool, number: int) -> Ask:
        if takes_pair:
            return Ask(adapter, *self._texts.pairs[number % len(self._texts.pairs)], number)
        return Ask(adapter, self._texts.singles[number % len(self._texts.singles)], None, number)


def _input(ask: Ask) -> dict[str, str]:
    return {"text": ask.text} if ask.text_pair is None else {"text": ask.text, "text_pair": ask.text_pair}
