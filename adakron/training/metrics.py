"""Scores of predictions against labels. Knows numpy arrays; nothing of models or files."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron.config import ProblemType
from adakron.errors import DataError

Floats = NDArray[np.floating[Any]]
Labels = NDArray[Any]

OUT_OF_SCOPE = "oos"

METRICS: Mapping[str, ProblemType | None] = MappingProxyType(
    {
        "accuracy": "single_label_classification",
        "macro_f1": None,
        "f1": "single_label_classification",
        "matthews": "single_label_classification",
        "in_scope_accuracy": "single_label_classification",
        "micro_f1": "multi_label_classification",
        "pearson": "regression",
        "spearman": "regression",
    }
)
"""Metric -> the only problem type it is for, or None: both kinds of classification. More is better for all of them."""

_DEFAULT: Mapping[ProblemType, str] = MappingProxyType(
    {
        "single_label_classification": "accuracy",
        "multi_label_classification": "macro_f1",
        "regression": "pearson",
    }
)


def choose_metric(name: str | None, problem_type: ProblemType, label_names: Sequence[str]) -> str:
    """`name` if it fits the task, the problem type's default if it is None. Raises DataError if it does not fit."""
    if name is None:
        return _DEFAULT[problem_type]
    only = METRICS[name]
    fits = only == problem_type or (only is None and problem_type != "regression")
    if not fits:
        raise DataError(f"the metric {name!r} is not for {problem_type}", hint=f"try {_DEFAULT[problem_type]!r}")
    if name == "f1" and len(label_names) != 2:
        raise DataError(f"the metric 'f1' is for two labels; found {len(label_names)}", hint="try 'macro_f1'")
    if name == "in_scope_accuracy" and OUT_OF_SCOPE not in label_names:
        raise DataError(f"the metric 'in_scope_accuracy' needs a label {OUT_OF_SCOPE!r}", hint="try 'accuracy'")
    return name


def score(
    logits: Floats, labels: Labels, problem_type: ProblemType, label_names: Sequence[str], threshold: float = 0.5
) -> dict[str, float]:
    """Every metric that applies, by name.

    logits  [N, L]; labels [N] int class ids, [N, L] of 0 and 1 (multi-label), or [N] float values (regression)
    f1      of the label with index 1
    in_scope_accuracy over the rows whose true label is not "oos", oos_recall over the others
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if problem_type == "regression":
        values = logits[:, 0].astype(np.float64)
        truth = labels.astype(np.float64).reshape(-1)
        return {"pearson": _correlation(values, truth), "spearman": _correlation(_ranks(values), _ranks(truth))}
    if problem_type == "multi_label_classification":
        chosen = logits > np.log(threshold / (1 - threshold))
        compute: Callable[..., float] = f1_score
        return {
            "macro_f1": float(compute(labels, chosen, average="macro", zero_division=0)),
            "micro_f1": float(compute(labels, chosen, average="micro", zero_division=0)),
        }
    chosen = logits.argmax(-1)
    scores = {
        "accuracy": float(accuracy_score(labels, chosen)),
        "macro_f1": float(f1_score(labels, chosen, average="macro", zero_division=0)),
    }
    if len(label_names) == 2:
        scores["f1"] = float(f1_score(labels, chosen, pos_label=1, zero_division=0))
        scores["matthews"] = float(matthews_corrcoef(labels, chosen))
    if OUT_OF_SCOPE in label_names:
        outside = labels == label_names.index(OUT_OF_SCOPE)
        scores["in_scope_accuracy"] = float((chosen == labels)[~outside].mean()) if (~outside).any() else 0.0
        scores["oos_recall"] = float((chosen == labels)[outside].mean()) if outside.any() else 0.0
    return scores


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson's r; 0 where a side is constant, since the correlation is then undefined."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = last - (counts + 1) / 2
    return means[inverse]
