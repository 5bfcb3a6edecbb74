import numpy as np
import pytest

from adakron import Result
from adakron.activations import activate
from adakron.classifier import scores
from adakron.config import AdaKronConfig, AdapterConfig, Calibration, Fingerprint

LOGITS = np.array([0.5, -2.0, 3.0], dtype=np.float32)


def test_softmax_sums_to_one_whatever_the_size() -> None:
    for scale in (1, 1e4, -1e4):
        scores = activate(LOGITS * np.float32(scale), "softmax")
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(activate(LOGITS, "softmax"), np.exp(LOGITS) / np.exp(LOGITS).sum(), rtol=1e-6)


def test_sigmoid_is_that_of_each_logit() -> None:
    np.testing.assert_allclose(activate(LOGITS, "sigmoid"), 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)
    np.testing.assert_array_equal(activate(np.array([-1e4, 1e4], dtype=np.float32), "sigmoid"), [0, 1])


def test_none_leaves_the_logits() -> None:
    np.testing.assert_array_equal(activate(LOGITS, "none"), LOGITS)


@pytest.fixture
def result() -> Result:
    config = AdapterConfig(
        adakron=AdaKronConfig(bottleneck=12),
        hidden_size=5,
        num_hidden_layers=1,
        base_model_name_or_path="x",
        base_fingerprint=Fingerprint("0" * 64, "0" * 64, "0" * 64),
        label_names=("a", "b", "c"),
        calibration=Calibration(temperature=2.0),
    )
    return Result("x", LOGITS, activate(LOGITS / np.float32(2), "softmax"), 3, False, config)


def test_activated_is_the_adapters_own_by_default_and_softmax_agrees(result: Result) -> None:
    assert result.activated(None) is result.scores
    np.testing.assert_array_equal(result.activated("softmax"), result.scores)


def test_activated_uses_the_temperature_but_for_none(result: Result) -> None:
    np.testing.assert_array_equal(result.activated("sigmoid"), activate(LOGITS / np.float32(2), "sigmoid"))
    np.testing.assert_array_equal(result.activated("none"), LOGITS)


def test_a_regression_has_its_value() -> None:
    value = Result("x", LOGITS[:1], np.empty(0, dtype=np.float32), 3, False)
    np.testing.assert_array_equal(value.activated(None), LOGITS[:1])


def test_top_activated_falls_and_is_cut(result: Result) -> None:
    assert result.top_activated(2, "none") == [("c", 3.0), ("a", 0.5)]
    assert [label for label, _ in result.top_activated(None, None)] == ["c", "a", "b"]


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("width", [2, 3, 20, 151])
def test_scores_of_a_row_do_not_depend_on_its_neighbours_to_the_last_bit(problem_type, width):
    random = np.random.default_rng(width)
    logits = (5 * random.standard_normal((33, width))).astype(np.float32)
    temperatures = random.uniform(0.5, 3, 33).astype(np.float32)
    together = scores(logits, problem_type, temperatures)
    for n in range(33):
        assert (scores(logits[n : n + 1], problem_type, temperatures[n : n + 1])[0] == together[n]).all()
    if problem_type == "single_label_classification":
        exact = np.exp(logits.astype(np.float64) / temperatures[:, None])
        np.testing.assert_allclose(together, exact / exact.sum(1, keepdims=True), rtol=1e-5)
