import numpy as np
import pytest

from adakron import Result
from adakron.config import Calibration
from server.telemetry.served import BOUNDS_S, Latencies, Served, ServedCounts, joined
from tests.server.stub_engine import config_of


def result(*scores: float, problem_type: str = "single_label_classification", threshold: float | None = None) -> Result:
    from dataclasses import replace

    labels = tuple(f"l{number}" for number in range(len(scores)))
    config = replace(config_of(labels, problem_type), calibration=Calibration(threshold=threshold))  # type: ignore[arg-type]
    array = np.array(scores, dtype=np.float32)
    return Result("x", array, array, 3, False, config)


def test_calls_rows_and_labels() -> None:
    counts = ServedCounts(clock=lambda: 100.0)
    counts.note("a", 1, [result(0.9, 0.1), result(0.2, 0.8), result(0.3, 0.7)], 1, 0.01)
    counts.note("a", 1, [], 2, 0.01)
    served = counts.of("a", [1, 2])[1]
    assert (served.since_s, served.good_calls, served.failed_calls) == (100.0, 1, 1)
    assert (served.good_rows, served.failed_rows, served.labels) == (3, 3, {0: 1, 1: 2})
    assert sum(served.latencies.counts) == 1


def test_a_withheld_label_is_none_of_them() -> None:
    served = Served(0)
    served.note([result(0.6, 0.4, threshold=0.7), result(0.8, 0.2, threshold=0.7)], 0, 0.1)
    assert (served.labels, served.withheld) == ({0: 1}, 1)


def test_a_row_may_carry_several_labels_or_none() -> None:
    served = Served(0)
    kind = "multi_label_classification"
    served.note([result(0.6, 0.4, 0.5, problem_type=kind), result(0.1, 0.1, 0.1, problem_type=kind)], 0, 0.1)
    assert (served.labels, served.good_rows, served.withheld) == ({0: 1, 2: 1}, 2, 0)


def test_a_version_that_becomes_active_begins_anew() -> None:
    now_s = 1.0
    counts = ServedCounts(clock=lambda: now_s)
    counts.note("a", 1, [result(0.9, 0.1)], 0, 0.01)
    counts.note("a", 2, [result(0.9, 0.1)], 0, 0.01)
    now_s = 2.0
    counts.begin("a", 1)
    found = counts.of("a", [1, 2])
    assert (found[1].since_s, found[1].good_rows, found[1].labels) == (2.0, 0, {})
    assert (found[2].since_s, found[2].good_rows) == (1.0, 1)


def test_what_is_read_is_a_copy() -> None:
    counts = ServedCounts()
    counts.note("a", 1, [result(0.9, 0.1)], 0, 0.01)
    before = counts.of("a", [1])[1]
    counts.note("a", 1, [result(0.9, 0.1)], 0, 0.01)
    assert (before.good_rows, before.labels, sum(before.latencies.counts)) == (1, {0: 1}, 1)


def test_versions_not_called_longest_are_forgotten() -> None:
    counts = ServedCounts(most_versions=2)
    for version in (1, 2, 1, 3):
        counts.note("a", version, [result(0.9, 0.1)], 0, 0.01)
    assert counts.of("a", [1, 2, 3]).keys() == {1, 3}


def test_many_labels_count_too() -> None:
    counts = ServedCounts(most_labels=3)
    for version in (1, 2):
        counts.note("a", version, [result(0.9, 0.1), result(0.1, 0.9)], 0, 0.01)
    assert counts.of("a", [1, 2]).keys() == {2}
    counts.note("b", 1, [result(*np.eye(5)[place]) for place in range(5)], 0, 0.01)
    assert counts.of("b", [1]).keys() == {1}, "one alone is kept, however many it has"
    counts.begin("b", 1)
    counts.note("a", 1, [result(0.9, 0.1)], 0, 0.01)
    assert counts.of("a", [1]).keys() == counts.of("b", [1]).keys() == {1}


def test_replicas_are_summed() -> None:
    one, other = ServedCounts(clock=lambda: 5.0), ServedCounts(clock=lambda: 3.0)
    one.note("a", 1, [result(0.9, 0.1)], 0, 0.01)
    other.note("a", 1, [result(0.9, 0.1), result(0.1, 0.9)], 1, 0.01)
    other.note("a", 2, [result(0.9, 0.1)], 0, 0.01)
    whole = joined([one.of("a", [1, 2]), other.of("a", [1, 2])])
    assert (whole[1].since_s, whole[1].good_calls, whole[1].good_rows, whole[1].failed_rows) == (3.0, 2, 3, 1)
    assert whole[1].labels == {0: 2, 1: 1}
    assert whole[2].good_rows == 1
    assert one.of("a", [1])[1].good_rows == 1, "its parts are left alone"


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_quantiles_are_off_by_a_tenth_at_most(share: float) -> None:
    seconds = np.random.default_rng(3).lognormal(-4, 1, size=4000)
    latencies = Latencies()
    for one in seconds:
        latencies.observe(float(one))
    assert latencies.quantile(share) == pytest.approx(np.quantile(seconds, share), rel=0.1)
    assert latencies.mean == pytest.approx(seconds.mean())


def test_quantiles_at_the_ends() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    assert latencies.mean is None
    latencies.observe(0.0)
    assert 0 < (latencies.quantile(1.0) or 0) <= BOUNDS_S[0]
    latencies = Latencies()
    latencies.observe(1e9)
    assert latencies.quantile(0.5) == BOUNDS_S[-1]
