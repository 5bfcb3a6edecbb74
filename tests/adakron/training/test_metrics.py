import numpy as np
import pytest

from adakron.errors import DataError
from adakron.training.metrics import choose_metric, score

SINGLE = "single_label_classification"


def one_hot(chosen: list[int], labels: int) -> np.ndarray:
    return np.eye(labels)[chosen]


def test_accuracy_and_f1_of_two_labels_by_hand() -> None:
    scores = score(one_hot([1, 1, 0, 0, 1], 2), np.array([1, 0, 0, 1, 1]), SINGLE, ["no", "yes"])
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / 6)


def test_in_scope_accuracy_leaves_out_the_oos_rows_but_not_the_oos_answers() -> None:
    labels = np.array([0, 1, 2, 2, 1])
    scores = score(one_hot([0, 2, 2, 0, 1], 3), labels, SINGLE, ["a", "b", "oos"])
    assert scores["in_scope_accuracy"] == pytest.approx(2 / 3)
    assert scores["oos_recall"] == pytest.approx(1 / 2)


def test_multi_label_counts_a_label_from_the_threshold_on() -> None:
    logits = np.array([[3.0, -3.0], [0.5, 0.5], [-3.0, 3.0]])
    truth = np.array([[1, 0], [1, 0], [0, 1]])
    scores = score(logits, truth, "multi_label_classification", ["p", "q"])
    assert scores["micro_f1"] == pytest.approx(6 / 7)
    assert score(logits, truth, "multi_label_classification", ["p", "q"], 0.7)["micro_f1"] == pytest.approx(4 / 5)


def test_correlations_agree_with_scipy_with_ties() -> None:
    from scipy.stats import pearsonr, spearmanr

    rnd = np.random.default_rng(0)
    truth = rnd.integers(0, 5, 40).astype(float)
    values = truth + rnd.normal(size=40)
    scores = score(values[:, None], truth, "regression", ["value"])
    assert scores["pearson"] == pytest.approx(pearsonr(values, truth).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(values, truth).statistic)


def test_a_constant_answer_correlates_with_nothing() -> None:
    scores = score(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), "regression", ["value"])
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_each_problem_type_has_its_default() -> None:
    assert choose_metric(None, SINGLE, ["a", "b"]) == "accuracy"
    assert choose_metric(None, "multi_label_classification", ["a", "b"]) == "macro_f1"
    assert choose_metric(None, "regression", ["value"]) == "pearson"


@pytest.mark.parametrize(
    ("metric", "problem_type", "labels"),
    [
        ("accuracy", "regression", ["value"]),
        ("macro_f1", "regression", ["value"]),
        ("pearson", SINGLE, ["a", "b"]),
        ("accuracy", "multi_label_classification", ["a", "b"]),
        ("f1", SINGLE, ["a", "b", "c"]),
        ("in_scope_accuracy", SINGLE, ["a", "b"]),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(metric: str, problem_type: str, labels: list[str]) -> None:
    with pytest.raises(DataError, match=metric):
        choose_metric(metric, problem_type, labels)
