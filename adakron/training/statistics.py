"""What a person should know of the data before hours of training: sizes, imbalance, lengths.

Knows rows and the tokenizer; nothing of models.
"""

import statistics
from dataclasses import dataclass

from tokenizers import Tokenizer

from adakron.text import tokenise
from adakron.training.data import TaskData
from adakron.training.loop import texts_of


@dataclass(frozen=True, slots=True)
class Statistics:
    """Lengths in tokens, before any cut; commonest and rarest: a label and its training rows, None for regression."""

    train_rows: int
    validation_rows: int
    held_out: bool
    labels: int
    commonest: tuple[str, int] | None
    rarest: tuple[str, int] | None
    median_length: int
    longest: int
    max_length: int
    train_over_max_length: int
    validation_over_max_length: int

    @property
    def imbalance(self) -> float | None:
        """Rows of the commonest label for one row of the rarest; None for regression."""
        if self.commonest is None or self.rarest is None:
            return None
        return self.commonest[1] / max(1, self.rarest[1])

    def lines(self) -> list[str]:
        """For the terminal."""
        origin = "held out of train" if self.held_out else "a split of its own"
        lines = [f"rows: {self.train_rows:,} train, {self.validation_rows:,} validation ({origin})"]
        if self.commonest is not None and self.rarest is not None:
            lines.append(
                f"labels: {self.labels}; commonest {self.commonest[0]!r} in {self.commonest[1]:,} rows, "
                f"rarest {self.rarest[0]!r} in {self.rarest[1]:,} (1 to {self.imbalance:.1f})"
            )
        lines.append(f"tokens: median {self.median_length}, longest {self.longest}")
        lines.append(
            f"over max_length {self.max_length}, cut: {self.train_over_max_length:,} train rows "
            f"({self.train_over_max_length / self.train_rows:.1%}), {self.validation_over_max_length:,} validation"
        )
        return lines


def measure(data: TaskData, tokenizer: Tokenizer, max_length: int) -> Statistics:
    """Count labels and tokens. max_length: tokens a row may have, special ones counted."""
    unlimited = 1 << 30
    train, validation = (
        [len(encoding.ids) for encoding, _ in tokenise(tokenizer, texts_of(rows), [unlimited] * len(rows))]
        for rows in (data.train, data.validation)
    )
    shares: list[tuple[str, int]] = []
    if data.problem_type != "regression":
        counts = data.label_counts()
        shares = sorted(((name, counts[name]) for name in data.label_names), key=lambda pair: pair[1])
    return Statistics(
        train_rows=len(train),
        validation_rows=len(validation),
        held_out=data.held_out,
        labels=len(data.label_names),
        commonest=shares[-1] if shares else None,
        rarest=shares[0] if shares else None,
        median_length=int(statistics.median(train)),
        longest=max(train),
        max_length=max_length,
        train_over_max_length=sum(length > max_length for length in train),
        validation_over_max_length=sum(length > max_length for length in validation),
    )
