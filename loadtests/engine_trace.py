"""The rows of the engine benchmark: token ids of the lengths of real texts, and which adapter each row asks for.

The lengths are those of clinc150, tweeteval, sst2 and qnli in equal parts: intents, tweets, review sentences, and
questions with a passage. Where the texts are at hand and the backbone has a tokenizer of its own, the rows are these
texts; else random tokens, of lengths drawn from what was measured on them. Knows tokens and numbers; no adapter.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from adakron.text import TextOrPair, tokenise
from loadtests.zipf import Zipf

MAX_TOKENS = 128
SOURCES = ("clinc150", "tweeteval*", "sst2", "qnli")
ROWS_PER_SOURCE = 2500

# Tokens a row at 0/32, 1/32 .. 32/32 of the four sources in equal parts: their validation texts in MiniLM's tokens,
# special ones counted, cut at 128. Mean 28.
LENGTH_QUANTILES = (
    *(3, 7, 8, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 22),
    *(23, 25, 26, 28, 29, 31, 33, 35, 38, 41, 44, 47, 51, 56, 62, 73, 128),
)

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run at once: ids[n] are the tokens of row n, adapters[n] the number of its adapter, from 0."""

    ids: tuple[Ids, ...]
    adapters: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.adapters):
            raise ValueError(f"expected an adapter a row; got {len(self.adapters)} for {len(self.ids)} rows")

    @property
    def n_tokens(self) -> int:
        return sum(len(ids) for ids in self.ids)

    @property
    def distinct(self) -> int:
        """How many different adapters the rows ask for."""
        return len(set(self.adapters))

    def with_adapters(self, adapters: Sequence[int]) -> "Batch":
        """The same rows for other adapters."""
        return Batch(self.ids, tuple(adapters))


class Trace:
    """Rows drawn from a pool, the same for the same seed. Raises ValueError for an empty pool."""

    def __init__(self, pool: Sequence[Ids], source: str, seed: int = 1) -> None:
        if not pool:
            raise ValueError("expected at least one row to draw from")
        self.pool, self.source = pool, source
        self._rng = Random(seed)

    def rows(self, count: int) -> tuple[Ids, ...]:
        """`count` rows."""
        return tuple(self._rng.choices(self.pool, k=count))

    def rows_of(self, n_tokens: int) -> tuple[Ids, ...]:
        """Rows of `n_tokens` in all: the last is cut to fit."""
        rows: list[Ids] = []
        missing = n_tokens
        while missing:
            rows.append(self._rng.choice(self.pool)[:missing])
            missing -= len(rows[-1])
        return tuple(rows)

    def uniform(self, count: int, adapters: int) -> tuple[int, ...]:
        """An adapter for each of `count` rows, every one equally likely."""
        return tuple(self._rng.randrange(adapters) for _ in range(count))

    def zipf(self, count: int, adapters: int) -> tuple[int, ...]:
        """An adapter for each of `count` rows by Zipf's law with exponent 1; which ones are popular is random."""
        law, ranks = Zipf(adapters), self._rng.sample(range(adapters), adapters)
        return tuple(ranks[law.draw(self._rng)] for _ in range(count))

    def spread(self, count: int, distinct: int, adapters: int) -> tuple[int, ...]:
        """Exactly `distinct` of `adapters`, with equally many of `count` rows as far as that goes, in random order.

        Raises ValueError if there are fewer rows or adapters than that.
        """
        if not 1 <= distinct <= min(count, adapters):
            raise ValueError(f"cannot spread {count} rows over {distinct} of {adapters} adapters")
        chosen = self._rng.sample(range(adapters), distinct)
        assigned = [chosen[row % distinct] for row in range(count)]
        self._rng.shuffle(assigned)
        return tuple(assigned)


def generated_trace(vocabulary: range, max_tokens: int = MAX_TOKENS, count: int = 10_000, seed: int = 1) -> Trace:
    """Random tokens out of `vocabulary` in rows of lengths as real texts have, cut at `max_tokens`."""
    rng = Random(seed)
    lengths = (min(generated_length(rng.random()), max_tokens) for _ in range(count))
    pool = [tuple(rng.choices(vocabulary, k=length)) for length in lengths]
    return Trace(pool, "random tokens, lengths as of clinc150, tweeteval, sst2 and qnli", seed)


def generated_length(share: float) -> int:
    """The length below which that share, 0 to 1, of the rows lie; straight lines between the measured quantiles."""
    position = share * (len(LENGTH_QUANTILES) - 1)
    below = min(int(position), len(LENGTH_QUANTILES) - 2)
    low, high = LENGTH_QUANTILES[below], LENGTH_QUANTILES[below + 1]
    return round(low + (position - below) * (high - low))


def real_trace(folder: Path, tokenizer: Tokenizer, max_tokens: int = MAX_TOKENS, seed: int = 1) -> Trace:
    """The texts below `folder`, tokenised and cut at `max_tokens`: 2,500 rows a source, drawn again where it has fewer.

    Raises ValueError for a folder that lacks one of the sources.
    """
    rng = Random(seed)
    pool: list[Ids] = []
    for source in SOURCES:
        texts = _texts(folder, source)
        if not texts:
            raise ValueError(f"{folder}: expected {source}/validation.jsonl.gz with texts")
        chosen = rng.sample(texts, min(ROWS_PER_SOURCE, len(texts)))
        encodings = tokenise(tokenizer, chosen, [max_tokens] * len(chosen))
        rows = [tuple(encoding.ids) for encoding, _ in encodings]
        pool += rows + rng.choices(rows, k=ROWS_PER_SOURCE - len(rows))
    return Trace(pool, "texts of clinc150, tweeteval, sst2 and qnli", seed)


def _texts(folder: Path, pattern: str) -> list[TextOrPair]:
    texts: list[TextOrPair] = []
    for path in sorted(folder.glob(f"{pattern}/validation.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                text, pair = row["text"], row.get("text_pair")
                if text.strip():
                    texts.append((text, pair) if pair else text)
    return texts
