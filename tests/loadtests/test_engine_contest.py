import gc
from collections.abc import Callable

import pytest

from loadtests.engine_contest import MAX_ROUNDS, Patience, Spread, seconds_of, speed_ratio, spread, take_turns


class Clock:
    """Time passes only while something runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """A run that takes these seconds, one after the other, the last for ever."""
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now_s += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_every_other_round_runs_backwards_after_one_run_each(clock: Clock) -> None:
    runs = {name: clock.takes(name, 1.0) for name in "abc"}
    take_turns(runs, Patience(budget_s=6.0, min_rounds=2), clock)
    assert "".join(clock.log) == "abc" + "abc" + "cba"


def test_the_first_run_does_not_count(clock: Clock) -> None:
    rounds = take_turns({"a": clock.takes("a", 1.5, 1.0)}, Patience(budget_s=3.0, min_rounds=2), clock)
    assert [seconds["a"] for seconds in rounds] == [1.0, 1.0, 1.0]


def test_a_first_run_beyond_half_the_budget_counts(clock: Clock) -> None:
    runs = {"fast": clock.takes("fast", 1.0), "slow": clock.takes("slow", 9.0)}
    rounds = take_turns(runs, Patience(budget_s=8.0, min_rounds=2), clock)
    assert rounds[0] == {"slow": 9.0}
    assert clock.log.count("slow") == 2


def test_a_slow_entry_sits_out_and_the_fast_one_goes_on(clock: Clock) -> None:
    runs = {"fast": clock.takes("fast", 1.0), "slow": clock.takes("slow", 5.0)}
    rounds = take_turns(runs, Patience(budget_s=20.0, min_rounds=2), clock)
    assert [("slow" in seconds, "fast" in seconds) for seconds in rounds] == [(True, True)] * 2 + [(False, True)] * 8


def test_an_entry_that_was_held_up_once_has_all_its_rounds(clock: Clock) -> None:
    runs = {"a": clock.takes("a", 1.0, 9.0, 1.0), "b": clock.takes("b", 1.0)}
    rounds = take_turns(runs, Patience(budget_s=10.0, min_rounds=2), clock)
    assert [seconds["a"] for seconds in rounds] == [9.0, 1.0, 1.0, 1.0, 1.0]


def test_every_entry_has_its_least_number_of_rounds(clock: Clock) -> None:
    runs = {"fast": clock.takes("fast", 1.0), "slow": clock.takes("slow", 50.0)}
    rounds = take_turns(runs, Patience(budget_s=2.0, min_rounds=3), clock)
    assert seconds_of(rounds, "slow").count == 3


def test_no_run_starts_after_the_deadline(clock: Clock) -> None:
    runs = {name: clock.takes(name, 2.0) for name in "ab"}
    rounds = take_turns(runs, Patience(budget_s=99.0, min_rounds=5, deadline_s=7.0), clock)
    assert clock.now_s == 8.0
    assert rounds == [{"a": 2.0, "b": 2.0}]


def test_an_entry_that_the_deadline_left_no_time_for_is_absent(clock: Clock) -> None:
    runs = {name: clock.takes(name, 4.0) for name in "abc"}
    rounds = take_turns(runs, Patience(budget_s=99.0, deadline_s=6.0), clock)
    assert rounds == [{"a": 4.0, "b": 4.0}]
    assert clock.log == ["a", "b"]


def test_an_entry_with_time_for_one_run_is_measured_by_it(clock: Clock) -> None:
    runs = {"fast": clock.takes("fast", 1.0), "slow": clock.takes("slow", 9.0)}
    rounds = take_turns(runs, Patience(budget_s=10.0, deadline_s=10.0), clock)
    assert rounds == [{"fast": 1.0, "slow": 9.0}]


def test_rounds_are_bounded(clock: Clock) -> None:
    assert len(take_turns({"a": clock.takes("a", 1e-6)}, Patience(budget_s=9.0), clock)) == MAX_ROUNDS


def test_garbage_is_not_collected_meanwhile_and_is_again_after_a_failure(clock: Clock) -> None:
    seen = []

    def run() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        take_turns({"a": run}, Patience(budget_s=1.0), clock)
    assert (seen, gc.isenabled()) == ([False], True)


def test_spread_gives_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_the_ratio_is_of_speeds_and_taken_round_by_round() -> None:
    # The machine slows down fourfold from round to round; the ratio does not.
    rounds = [{"engine": seconds, "rival": 3 * seconds} for seconds in (1.0, 4.0, 16.0)]
    assert speed_ratio(rounds, "engine", "rival") == Spread(3.0, 3.0, 3.0, 3)


def test_rounds_without_both_do_not_count_for_the_ratio() -> None:
    rounds = [{"engine": 1.0, "rival": 2.0}, {"engine": 100.0}]
    assert speed_ratio(rounds, "engine", "rival") == Spread(2.0, 2.0, 2.0, 1)


def test_without_a_common_round_medians_are_compared() -> None:
    rounds = [{"rival": 8.0}, {"engine": 1.0}, {"engine": 2.0}, {"engine": 4.0}]
    assert speed_ratio(rounds, "engine", "rival") == Spread(4.0, 4.0, 4.0, 1)


def test_there_is_no_ratio_to_who_never_ran() -> None:
    assert speed_ratio([{"engine": 1.0}], "engine", "rival") is None
    assert speed_ratio([{"rival": 1.0}], "engine", "rival") is None
