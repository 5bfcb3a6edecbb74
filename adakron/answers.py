"""From a batch's logits to the answer of each row. Knows rows and numbers; nothing of how they were computed."""

from collections.abc import Sequence

import numpy as np

from adakron.classifier import scores
from adakron.config import AdapterConfig, ProblemType
from adakron.encoding import EncodedRow
from adakron.rows import Result, RowError


def answers_of(
    rows: Sequence[EncodedRow], logits: Sequence[np.ndarray | None], vectors: np.ndarray | None
) -> list[Result | RowError]:
    """Answers in the order of the rows; scores of one problem type and width are made together.

    logits   [width] float32 of each row, as wide as its head is padded to; None for rows without adapter
    vectors  [B, D] float32, pooled; needed for rows without adapter alone

    A row whose logits are not finite gets RowError ADAPTER_NUMERIC_ERROR.
    """
    answers: dict[int, Result | RowError] = {}
    alike: dict[tuple[ProblemType, int], list[tuple[int, AdapterConfig, np.ndarray]]] = {}
    for n, (row, values) in enumerate(zip(rows, logits, strict=True)):
        config = row.lease.config
        if config is None or values is None:
            assert vectors is not None
            empty = np.empty(0, dtype=np.float32)
            answers[n] = Result(None, empty, empty, row.n_tokens, row.truncated, embedding=vectors[n])
        else:
            alike.setdefault((config.problem_type, config.num_labels), []).append((n, config, values))
    for (problem_type, width), members in alike.items():
        together = np.stack([values[:width] for _, _, values in members])
        finite = np.isfinite(together).all(1)
        together[~finite] = 0  # nobody is told what comes of them
        temperatures = np.array([config.calibration.temperature for _, config, _ in members], dtype=np.float32)
        shares = scores(together, problem_type, temperatures)
        for place, (n, config, _) in enumerate(members):
            row = rows[n]
            answers[n] = (
                Result(row.lease.key, together[place], shares[place], row.n_tokens, row.truncated, config)
                if finite[place]
                else RowError(
                    "ADAPTER_NUMERIC_ERROR",
                    "the adapter gave NaN or infinity for this text",
                    hint="retrain or replace the adapter",
                )
            )
    return [answers[n] for n in range(len(rows))]
