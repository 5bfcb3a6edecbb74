from pathlib import Path

import pytest

from loadtests.samples import Sample, percentile, read_samples, write_samples


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (0.999, 100), (1.0, 100), (0.01, 1), (0.001, 1)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile([float(value) for value in range(1, 101)], share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_percentile_does_not_climb_a_rank_by_rounding() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    assert percentile([float(value) for value in range(1, 101)], 0.07) == 7


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_percentile_of_nothing_or_beyond_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="expected values and a share"):
        percentile(values, share)


def test_samples_survive_the_file(tmp_path: Path) -> None:
    samples = [Sample(0.25, 0.001234, "single", 200, 1, 1, "ok"), Sample(1.5, 0.5, "broken upload", 0, 0, 1, "failed")]
    write_samples(tmp_path / "samples.csv", samples)
    assert read_samples(tmp_path / "samples.csv") == samples
