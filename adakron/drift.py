"""How far the labels an adapter gives have moved from those it was trained on: two measures of one comparison.

With p the reference, the share of each label in the training data, and q the shares of what was answered:

    population stability index      PSI(p, q) = sum_l (q_l - p_l) ln(q_l / p_l)                  >= 0, unbounded
    Jensen-Shannon distance         JSD(p, q) = sqrt((KL(p || m) + KL(q || m)) / 2)              0 to 1
                                    m = (p + q) / 2,   KL(a || b) = sum_l a_l log2(a_l / b_l)

PSI is what is used in credit scoring (Siddiqi 2006), with rules of thumb: below 0.1 nothing happened, above 0.25 look
into it. It would be infinite for a label of which there is none on one side, so shares below LEAST_SHARE count as that.
JSD needs no such care and compares between adapters with different numbers of labels.

By chance alone, n rows of an unchanged stream over L labels give a PSI of about (L - 1) / n (Yurdakul 2018); with
`rows_needed` that stays below 0.05.

Labels of a multi-label adapter do not exclude each other, so that their shares are no distribution: each label is
compared by itself, carried against not carried, and the mean over the labels is given. Knows numbers alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SHARE = 1e-4
LEAST_ROWS = 100
ROWS_A_LABEL = 20


@dataclass(frozen=True, slots=True)
class Drift:
    """Both measures; 0 where nothing changed."""

    psi: float
    jensen_shannon: float


def rows_needed(num_labels: int) -> int:
    """Rows below which chance alone may look like drift."""
    return max(LEAST_ROWS, ROWS_A_LABEL * num_labels)


def drift(reference: Sequence[float], counts: Sequence[int]) -> Drift:
    """Of labels that exclude each other. reference: shares, brought to a sum of 1; counts: rows answered with each.

    Raises ValueError where lengths differ or either has no sum.
    """
    _check(len(reference) == len(counts), "as many counts as shares")
    p, q = _shares(reference), _shares(counts)
    return Drift(_psi(p, q), _jensen_shannon(p, q))


def multi_label_drift(reference: Sequence[float], counts: Sequence[int], rows: int) -> Drift:
    """Of labels that do not. reference: share of rows that carry each; counts: rows, of so many, that were given each.

    Raises ValueError where lengths differ or there are no rows.
    """
    _check(len(reference) == len(counts) > 0 and rows > 0, "as many counts as shares, and rows")
    each = [drift((share, 1 - share), (count, rows - count)) for share, count in zip(reference, counts, strict=True)]
    return Drift(
        math.fsum(one.psi for one in each) / len(each), math.fsum(one.jensen_shannon for one in each) / len(each)
    )


def _psi(p: Sequence[float], q: Sequence[float]) -> float:
    floored = [(max(a, LEAST_SHARE), max(b, LEAST_SHARE)) for a, b in zip(p, q, strict=True)]
    return math.fsum((b - a) * math.log(b / a) for a, b in floored)


def _jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = (_kullback_leibler(p, middle) + _kullback_leibler(q, middle)) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))  # rounding may leave either end by a last bit


def _kullback_leibler(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * math.log2(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def _shares(weights: Sequence[float]) -> list[float]:
    whole = math.fsum(weights)
    _check(whole > 0, "a sum above 0")
    return [weight / whole for weight in weights]


def _check(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}")
