from collections import Counter
from random import Random

import pytest

from loadtests.zipf import Zipf


def test_first_rank_is_drawn_twice_as_often_as_the_second_and_ten_times_the_tenth() -> None:
    zipf, rng = Zipf(10), Random(1)
    drawn = Counter(zipf.draw(rng) for _ in range(40_000))
    assert drawn[0] / drawn[1] == pytest.approx(2, rel=0.1)
    assert drawn[0] / drawn[9] == pytest.approx(10, rel=0.15)


def test_exponent_zero_is_uniform() -> None:
    zipf, rng = Zipf(5, 0.0), Random(1)
    drawn = Counter(zipf.draw(rng) for _ in range(20_000))
    assert all(drawn[rank] == pytest.approx(4000, rel=0.1) for rank in range(5))


def test_every_rank_can_be_drawn_and_none_beyond() -> None:
    zipf, rng = Zipf(7), Random(1)
    assert {zipf.draw(rng) for _ in range(5000)} == set(range(7))


def test_largest_random_number_stays_in_range() -> None:
    class Largest(Random):
        def random(self) -> float:
            return 1.0

    assert Zipf(3).draw(Largest()) == 2


@pytest.mark.parametrize(("count", "exponent"), [(0, 1.0), (-1, 1.0), (5, -0.5)])
def test_impossible_shapes_are_refused(count: int, exponent: float) -> None:
    with pytest.raises(ValueError, match="at least one rank"):
        Zipf(count, exponent)
