import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from adakron.drift import LEAST_ROWS, LEAST_SHARE, Drift, drift, multi_label_drift, rows_needed

counts = st.lists(st.integers(0, 10_000), min_size=2, max_size=20).filter(any)


@given(counts, st.data())
def test_both_measures_are_those_of_the_books(reference: list[int], data: st.DataObject) -> None:
    served = data.draw(st.lists(st.integers(0, 10_000), min_size=len(reference), max_size=len(reference)).filter(any))
    shares = [weight / sum(reference) for weight in reference]
    found = drift(shares, served)
    p, q = np.array(shares), np.array(served) / sum(served)
    assert found.jensen_shannon == pytest.approx(jensenshannon(p, q, base=2), abs=1e-6)
    p, q = np.maximum(p, LEAST_SHARE), np.maximum(q, LEAST_SHARE)
    assert found.psi == pytest.approx(float(((q - p) * np.log(q / p)).sum()), abs=1e-9)


@given(counts)
def test_what_did_not_change_has_none(served: list[int]) -> None:
    found = drift([count / sum(served) for count in served], served)
    assert found.psi == pytest.approx(0, abs=1e-12)
    assert found.jensen_shannon == pytest.approx(0, abs=1e-6)


def test_labels_never_trained_on_are_as_far_as_it_goes_and_no_infinity() -> None:
    found = drift((1.0, 0.0), (0, 50))
    assert found.jensen_shannon == 1
    assert found.psi == pytest.approx(2 * (1 - LEAST_SHARE) * math.log(1 / LEAST_SHARE))


def test_a_reference_of_rounded_shares_is_brought_to_one() -> None:
    assert drift((0.333333, 0.333333, 0.333333), (7, 7, 7)).psi == pytest.approx(0, abs=1e-12)


def test_several_labels_a_row_are_compared_each_by_itself() -> None:
    one = drift((0.5, 0.5), (80, 20))
    assert multi_label_drift((0.5, 0.9), (80, 90), 100) == Drift(
        pytest.approx(one.psi / 2), pytest.approx(one.jensen_shannon / 2, abs=1e-7)
    )


@pytest.mark.parametrize(
    ("reference", "served"), [((0.5, 0.5), (1,)), ((0.0, 0.0), (1, 1)), ((0.5, 0.5), (0, 0)), ((), ())]
)
def test_what_cannot_be_compared_is_refused(reference: tuple[float, ...], served: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        drift(reference, served)


def test_several_labels_of_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        multi_label_drift((0.5,), (0,), 0)


@pytest.mark.parametrize("num_labels", [2, 7, 77])
def test_with_enough_rows_chance_alone_does_not_look_like_drift(num_labels: int) -> None:
    random = np.random.default_rng(7)
    shares = random.dirichlet(np.full(num_labels, 5.0))
    rows = rows_needed(num_labels)
    mean = np.mean([drift(shares.tolist(), random.multinomial(rows, shares).tolist()).psi for _ in range(100)])
    assert rows >= LEAST_ROWS
    assert mean < 0.06
