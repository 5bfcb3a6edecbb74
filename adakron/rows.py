"""What goes into the engine and what comes out: rows, results and errors in a row's place.

Plain data; knows nothing of tensors on a device, text processing or HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adakron.activations import Activation, activate
from adakron.config import AdapterConfig


@dataclass(frozen=True, slots=True)
class Row:
    """One text, or pair of texts, for one adapter; adapter None asks for the backbone's own embedding.

    truncate   False makes a row that is too long an error instead of cutting it
    input_ids  tokens instead of text, for benchmarks
    """

    adapter: str | None = None
    text: str | None = None
    text_pair: str | None = None
    truncate: bool = True
    input_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no answer. code: UPPER_SNAKE; param: "text" or "text_pair" where one of them is to blame."""

    code: str
    message: str
    param: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One row's answer.

    logits     [L] float32; empty without adapter
    scores     [L] float32: softmax, or sigmoid for multi-label, of logits / temperature; empty for regression
    embedding  [D] float32, the mean of the last hidden states, only without adapter
    """

    adapter: str | None
    logits: np.ndarray
    scores: np.ndarray
    n_tokens: int
    truncated: bool
    config: AdapterConfig | None = None
    embedding: np.ndarray | None = None

    @property
    def problem_type(self) -> str | None:
        return None if self.config is None else self.config.problem_type

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels in index order."""
        return () if self.config is None else self.config.label_names

    @property
    def label(self) -> str | None:
        """The label of the highest score; None for regression, or where that score is below the adapter's threshold."""
        return self.label_from(None)

    def label_from(self, threshold: float | None) -> str | None:
        """The label of the highest score; None for regression, or where that score is below `threshold`.

        threshold  None: the adapter's own, if it has one; 0: always a label
        """
        if self.config is None or not len(self.scores):
            return None
        least, best = self.config.calibration.threshold if threshold is None else threshold, int(self.scores.argmax())
        return None if least is not None and float(self.scores[best]) < least else self.label_names[best]

    @property
    def score(self) -> float:
        """The highest score; NaN for regression."""
        return float(self.scores[self.scores.argmax()]) if len(self.scores) else float("nan")

    @property
    def value(self) -> float:
        """The value of a regression: its logit."""
        return float(self.logits[0])

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels whose score reaches the adapter's multi_label_threshold, by falling score."""
        if self.config is None:
            return ()
        return tuple(name for name, score in self.top(None) if score >= self.config.multi_label_threshold)

    def top(self, k: int | None) -> list[tuple[str, float]]:
        """The k highest (label, score), falling; all of them where k is None."""
        if k == 1 and len(self.scores):
            best = int(self.scores.argmax())
            return [(self.label_names[best], float(self.scores[best]))]
        return self._ranked(self.scores, k)

    def activated(self, activation: Activation | None) -> np.ndarray:
        """[L] float32: scores by another function of the logits. None is the adapter's own, for regression the value.

        softmax and sigmoid divide the logits by the adapter's temperature, as its own scores do; none leaves them.
        """
        if activation is None:
            return self.scores if len(self.scores) else self.logits
        temperature = 1.0 if self.config is None or activation == "none" else self.config.calibration.temperature
        return activate(self.logits / np.float32(temperature), activation)

    def top_activated(self, k: int | None, activation: Activation | None) -> list[tuple[str, float]]:
        """The k highest (label, score) of `activated`, falling; all of them where k is None."""
        return self._ranked(self.activated(activation), k)

    def _ranked(self, scores: np.ndarray, k: int | None) -> list[tuple[str, float]]:
        order = np.argsort(-scores, kind="stable")[:k]
        return [(self.label_names[index], float(scores[index])) for index in order]
