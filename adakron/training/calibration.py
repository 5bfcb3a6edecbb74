"""Scores that mean what they say: one temperature an adapter, fitted on validation, and what abstaining is worth.

    scores = softmax(logits / T), or sigmoid(logits / T) for multi-label;   T = argmin of the negative log-likelihood

T changes no label of a single-label adapter: it only makes scores smaller or larger (Guo, Pleiss, Sun, Weinberger 2017,
"On Calibration of Modern Neural Networks", ICML). It is stored in the artefact's configuration and applied by the
engine; tensors and golden examples, which are logits, stay as they are. Knows arrays and artefacts; nothing of files.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from adakron.artefact import Adapter
from adakron.config import Calibration, ProblemType
from adakron.engine import Engine
from adakron.errors import DataError
from adakron.training.data import TaskData
from adakron.training.inference import engine_for, logits_of
from adakron.training.labels import require_fit, targets_of
from adakron.training.recipe import Recipe
from adakron.training.run import Trained

Floats = NDArray[np.floating[Any]]
Labels = NDArray[Any]

BINS = 15
ABSTAIN_BELOW = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_BOUNDS = (0.05, 20.0)
_SEED = 13


@dataclass(frozen=True, slots=True)
class Measured:
    """How far scores can be believed, on `rows` rows.

    temperature  fitted on all rows; 1.0 where one fitted on half of them did not help the other half
    ece, nll     before: with temperature 1; after: each half of the rows with the temperature of the other half
    abstention   for each of ABSTAIN_BELOW the share of rows that are answered and the accuracy of those answers, None
                 without any, with the scores of `after`; empty for multi-label
    """

    rows: int
    temperature: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    abstention: tuple[dict[str, float | None], ...]


def calibrate(
    adapter: Adapter, data: TaskData, engine: Engine, *, abstain_below: float | None = None
) -> tuple[Adapter, Measured]:
    """The adapter with its temperature, fitted on the validation rows, and what was measured.

    engine         on the adapter's backbone, in float32
    abstain_below  the score below which no label is given; None keeps the adapter's own

    Raises DataError for a regression and for data that does not fit the adapter, BaseMismatchError for another
    backbone, ConfigError for a threshold that is not between 0 and 1.
    """
    config = adapter.config
    if config.problem_type == "regression":
        raise DataError("a regression has no scores that could be calibrated", hint="its value is its logit")
    require_fit(data, config, "the data")
    labels = targets_of(data, config)
    found = measure(logits_of(engine, adapter, data.validation), labels, config.problem_type)
    threshold = config.calibration.threshold if abstain_below is None else abstain_below
    stored = replace(config, calibration=Calibration(found.temperature, threshold))
    return Adapter.build(stored, adapter.tensors, adapter.expected), found


def require_labels(recipe: Recipe, data: TaskData) -> None:
    """Raises DataError where a recipe asks a regression to abstain."""
    if recipe.abstain_below is not None and data.problem_type == "regression":
        raise DataError("abstain_below: a regression gives a value and no label that could be withheld")


def calibrate_trained(trained: Trained, recipe: Recipe, data: TaskData) -> tuple[Trained, Measured | None]:
    """A finished run with its adapter calibrated; as it is, and None, where there is nothing to calibrate by.

    That is a regression, or a single row of validation.
    """
    if data.problem_type == "regression" or len(data.validation) < 2:
        return trained, None
    engine = engine_for(trained.adapter.config, recipe.backbone, "auto", "float32")
    adapter, found = calibrate(trained.adapter, data, engine, abstain_below=recipe.abstain_below)
    return replace(trained, adapter=adapter), found


def measure(logits: Floats, labels: Labels, problem_type: ProblemType) -> Measured:
    """Fit a temperature and judge it on rows that it was not fitted on: two halves, each by the other's temperature.

    logits  [N, L], N >= 2; labels [N] class ids, or [N, L] of 0 and 1 (multi-label)

    Raises DataError for fewer rows.
    """
    if len(logits) < 2:
        raise DataError(f"expected at least 2 rows of validation; found {len(logits)}")
    order = np.random.default_rng(_SEED).permutation(len(logits))
    halves = np.array_split(order, 2)
    crossed: Floats = logits.astype(np.float64)
    for mine, others in (halves, halves[::-1]):
        crossed[mine] /= fit_temperature(logits[others], labels[others], problem_type)
    before = negative_log_likelihood(logits, labels, problem_type)
    after = negative_log_likelihood(crossed, labels, problem_type)
    helps = after < before
    temperature = fit_temperature(logits, labels, problem_type) if helps else 1.0
    crossed = crossed if helps else logits
    return Measured(
        rows=len(logits),
        temperature=temperature,
        ece_before=_error(logits, labels, problem_type),
        ece_after=_error(crossed, labels, problem_type),
        nll_before=round(before, 4),
        nll_after=round(after if helps else before, 4),
        abstention=() if labels.ndim > 1 else _abstention(probabilities(crossed, problem_type), labels),
    )


def fit_temperature(logits: Floats, labels: Labels, problem_type: ProblemType) -> float:
    """The temperature of the least negative log-likelihood, from 0.05 to 20, to four digits.

    The likelihood is convex in 1 / T, so that it has one least value, found in log T.
    """
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), labels, problem_type),
        bounds=tuple(np.log(_BOUNDS)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return round(float(np.exp(found.x)), 4)


def negative_log_likelihood(logits: Floats, labels: Labels, problem_type: ProblemType) -> float:
    """Mean over rows of -log p(class), or over rows and labels of the binary cross-entropy (multi-label); in nats."""
    wide = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return float(np.mean(np.logaddexp(0, wide) - labels * wide))
    return float(-np.mean(log_softmax(wide, axis=1)[np.arange(len(labels)), labels]))


def probabilities(logits: Floats, problem_type: ProblemType) -> Floats:
    """Scores [N, L] of logits [N, L]: sigmoid for multi-label, else softmax; float64."""
    wide = logits.astype(np.float64)
    scores: Floats = expit(wide) if problem_type == "multi_label_classification" else softmax(wide, axis=1)
    return scores


def expected_calibration_error(confidence: Floats, correct: Labels, bins: int = BINS) -> float:
    """ECE = sum over bins of |bin| / N * |accuracy(bin) - mean confidence(bin)|.

    confidence  [N] from 0 to 1; correct [N] of 0 and 1
    bins        of equal width, ((m - 1) / bins, m / bins], 0 with the first: Naeini, Cooper, Hauskrecht 2015,
                "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI; 15 as in Guo et al. 2017
    """
    number = np.clip(np.ceil(confidence * bins).astype(int), 1, bins)
    gaps = np.bincount(number, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def _error(logits: Floats, labels: Labels, problem_type: ProblemType) -> float:
    """Of the best label and whether it is right; multi-label: of every label's score and whether the row has it."""
    scores = probabilities(logits, problem_type)
    if problem_type == "multi_label_classification":
        return round(expected_calibration_error(scores.ravel(), labels.ravel()), 4)
    return round(expected_calibration_error(scores.max(1), scores.argmax(1) == labels), 4)


def _abstention(scores: Floats, labels: Labels) -> tuple[dict[str, float | None], ...]:
    best, right = scores.max(1), scores.argmax(1) == labels
    return tuple(_answered(best >= below, right, below) for below in ABSTAIN_BELOW)


def _answered(kept: Labels, right: Labels, below: float) -> dict[str, float | None]:
    accuracy = round(float(right[kept].mean()), 4) if kept.any() else None
    return {"below": below, "coverage": round(float(kept.mean()), 4), "accuracy": accuracy}
