"""The arithmetic of calibration, against values worked out by hand and against data whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from adakron.config import Calibration
from adakron.engine import Engine
from adakron.errors import DataError
from adakron.training.calibration import (
    ABSTAIN_BELOW,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    measure,
    negative_log_likelihood,
    probabilities,
)
from adakron.training.data import load_task
from adakron.training.labels import targets_of
from tests.adakron.training.labelled import save_task
from tests.tiny import Example, tiny_adapter, tiny_backbone

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def honest(rows: int, labels: int, seed: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, L] and classes [N] drawn from their very softmax: by construction calibrated."""
    rnd = np.random.default_rng(seed)
    logits = spread * rnd.normal(size=(rows, labels))
    chances = probabilities(logits, SINGLE)
    return logits, np.array([rnd.choice(labels, p=row) for row in chances])


def honest_multi(rows: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rnd = np.random.default_rng(seed)
    logits = 2 * rnd.normal(size=(rows, labels))
    return logits, (rnd.random((rows, labels)) < probabilities(logits, MULTI)).astype(float)


# ---- calibration error ---------------------------------------------------------------------------------------------


def test_the_error_is_the_weighted_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([1, 1, 1, 0, 1, 0])
    # One bin of four rows, |0.75 - 0.95| = 0.2; one of two, |0.5 - 0.55| = 0.05.
    assert expected_calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.05)


def test_gaps_of_opposite_sign_do_not_cancel_between_bins() -> None:
    assert expected_calibration_error(np.array([0.9, 0.6]), np.array([0, 1])) == pytest.approx(0.65)


def test_bins_are_open_below_and_closed_above() -> None:
    edge = 3 / 15
    # 0.2 belongs to the third bin, (2/15, 3/15], with 0.15; just above it begins the fourth.
    together = expected_calibration_error(np.array([0.15, edge]), np.array([1, 0]))
    apart = expected_calibration_error(np.array([0.15, edge + 1e-9]), np.array([1, 0]))
    assert together == pytest.approx(abs(0.5 - (0.15 + edge) / 2))
    assert apart == pytest.approx((0.85 + edge) / 2)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_the_ends_belong_to_a_bin(confidence: float) -> None:
    assert expected_calibration_error(np.array([confidence]), np.array([confidence])) == 0


# ---- temperature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(truth: float) -> None:
    logits, classes = honest(5_000, 4, seed=1)
    assert fit_temperature(truth * logits, classes, SINGLE) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("truth", [0.5, 2.5])
def test_the_temperature_of_a_multi_label_adapter_is_found(truth: float) -> None:
    logits, present = honest_multi(4_000, 3, seed=2)
    assert fit_temperature(truth * logits, present, MULTI) == pytest.approx(truth, rel=0.05)


def test_the_likelihood_is_of_the_true_class() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.3, 0.7]]))
    assert negative_log_likelihood(logits, np.array([0, 0]), SINGLE) == pytest.approx(
        -(math.log(0.8) + math.log(0.3)) / 2
    )


def test_the_likelihood_of_many_labels_is_the_mean_over_all_of_them() -> None:
    logits = np.array([[0.0, np.log(3)]])
    expected = -(math.log(0.5) + math.log(1 - 0.75)) / 2
    assert negative_log_likelihood(logits, np.array([[1.0, 0.0]]), MULTI) == pytest.approx(expected)


def test_logits_of_any_size_stay_finite() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert negative_log_likelihood(logits, np.array([1, 1]), SINGLE) == pytest.approx(1e4)
    assert np.isfinite(negative_log_likelihood(logits, np.array([[0.0, 1.0], [0.0, 1.0]]), MULTI))


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_an_overconfident_adapter_is_brought_back() -> None:
    logits, classes = honest(4_000, 5, seed=3)
    found = measure(3 * logits, classes, SINGLE)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.ece_before > 0.1
    assert found.ece_after < 0.03
    assert found.nll_after < found.nll_before


def test_the_error_after_is_of_rows_that_the_temperature_was_not_fitted_on() -> None:
    """Each half of the rows asks for a temperature of its own, and is judged by the other's."""
    logits, classes = honest(2_000, 3, seed=4)
    first = np.random.default_rng(13).permutation(len(logits))[:1_000]  # the half that `measure` takes first
    scaled = 1.5 * logits
    scaled[first] = 6 * logits[first]
    found = measure(scaled, classes, SINGLE)
    fitted = np.empty(len(logits))
    fitted[first] = fit_temperature(np.delete(scaled, first, 0), np.delete(classes, first), SINGLE)
    rest = np.setdiff1d(np.arange(len(logits)), first)
    fitted[rest] = fit_temperature(scaled[first], classes[first], SINGLE)
    chances = probabilities(scaled / fitted[:, None], SINGLE)
    wanted = expected_calibration_error(chances.max(1), chances.argmax(1) == classes)
    assert found.ece_after == pytest.approx(wanted, abs=1e-4)
    optimistic = probabilities(scaled / found.temperature, SINGLE)
    assert abs(wanted - expected_calibration_error(optimistic.max(1), optimistic.argmax(1) == classes)) > 0.01


def test_a_temperature_that_does_not_help_other_rows_is_not_taken() -> None:
    # 8 rows, all right: the likelihood asks for an ever smaller temperature on one half; the other has the one mistake.
    logits = np.array([[3.0, 0.0]] * 8)
    order = np.random.default_rng(13).permutation(8)
    classes = np.zeros(8, dtype=int)
    classes[order[0]] = 1
    found = measure(logits, classes, SINGLE)
    assert found.temperature == 1.0
    assert found.ece_after == found.ece_before


def test_one_row_measures_nothing() -> None:
    with pytest.raises(DataError, match="at least 2 rows"):
        measure(np.array([[1.0, 0.0]]), np.array([0]), SINGLE)


def test_abstaining_trades_coverage_for_accuracy() -> None:
    logits, classes = honest(3_000, 3, seed=5)
    table = measure(logits, classes, SINGLE).abstention
    assert [entry["below"] for entry in table] == list(ABSTAIN_BELOW)
    coverage = [entry["coverage"] for entry in table]
    accuracy = [entry["accuracy"] for entry in table]
    assert coverage == sorted(coverage, reverse=True)
    assert accuracy == sorted(accuracy)
    for entry in table:  # calibrated: those above a score are right at least as often as it says
        assert entry["accuracy"] >= entry["below"] - 0.02


def test_where_every_row_is_withheld_there_is_no_accuracy() -> None:
    logits, classes = honest(400, 3, seed=6, spread=0.05)
    last = measure(logits, classes, SINGLE).abstention[-1]
    assert (last["coverage"], last["accuracy"]) == (0.0, None)


def test_many_labels_have_no_table_of_abstention() -> None:
    logits, present = honest_multi(400, 3, seed=7)
    assert measure(logits, present, MULTI).abstention == ()


# ---- an artefact ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def engine(backbone):
    return Engine(backbone, torch.device("cpu"), torch.float32, kernels="eager")


@pytest.fixture(scope="module")
def adapter(backbone):
    return tiny_adapter(backbone, ["warm", "cold"], scale=1.0, expected=[Example("the good word", None, (0.5, -0.5))])


def test_a_calibrated_artefact_differs_in_its_configuration_alone(adapter, engine, task_folder) -> None:
    again, found = calibrate(adapter, load_task(str(task_folder("single"))), engine, abstain_below=0.6)
    assert again.sha256 != adapter.sha256
    assert again.config.calibration == Calibration(found.temperature, 0.6)
    assert dataclasses.replace(again.config, calibration=Calibration()) == adapter.config
    assert again.expected == adapter.expected
    assert all(bool((again.tensors[name] == tensor).all()) for name, tensor in adapter.tensors.items())


def test_labels_are_those_of_the_adapter_whatever_their_order_in_the_data(adapter, engine, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    assert data.label_names == ("cold", "warm")
    assert targets_of(data, adapter.config).tolist() == [0 if row.label == "warm" else 1 for row in data.validation]


def test_calibrating_twice_is_calibrating_once(adapter, engine, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    once, found = calibrate(adapter, data, engine)
    again, twice = calibrate(once, data, engine)
    assert (again.sha256, twice) == (once.sha256, found)


def test_the_threshold_stays_unless_another_is_given(adapter, engine, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    first, _ = calibrate(adapter, data, engine, abstain_below=0.7)
    kept, _ = calibrate(first, data, engine)
    assert kept.config.calibration.threshold == 0.7


def test_a_regression_has_nothing_to_calibrate(backbone, engine, task_folder) -> None:
    with pytest.raises(DataError, match="a regression has no scores"):
        calibrate(
            tiny_adapter(backbone, ["value"], problem_type="regression"), load_task(str(task_folder("value"))), engine
        )


def test_data_that_is_not_the_adapter_s_is_refused(backbone, engine, task_folder, tmp_path) -> None:
    with pytest.raises(DataError, match="takes text, the data differs"):
        calibrate(tiny_adapter(backbone, ["same", "other"]), load_task(str(task_folder("pair"))), engine)
    other = tiny_adapter(backbone, ["warm", "windy"])
    with pytest.raises(DataError, match="'cold' is none of the adapter's 2"):
        calibrate(other, load_task(str(save_task(tmp_path / "weather", "single"))), engine)
