import random

import pytest

from server.errors import InvalidRequestError
from server.names import check_name
from server.telemetry.busiest import MOST_WATCHED, OTHER, REMEMBERED, REVIEW_EVERY_S, Busiest


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def minute(self) -> None:
        self.now_s += REVIEW_EVERY_S


def call(busiest: Busiest, name: str, times: int = 1) -> None:
    for _ in range(times):
        busiest.figures_of(name).count(1, 0, 0.5)


def calls(busiest: Busiest) -> dict[str, int]:
    return {name: figures.good_calls + figures.failed_calls for name, figures in busiest.read().items()}


def test_few_adapters_all_have_their_own() -> None:
    busiest = Busiest(2)
    call(busiest, "a", 3)
    busiest.figures_of("b").count(0, 2, 9.0)
    read = busiest.read()
    assert (read["a"].good_calls, read["a"].good_rows, read["a"].seconds) == (3, 3, 1.5)
    assert (read["b"].failed_calls, read["b"].failed_rows, read["b"].seconds) == (1, 2, 0.0)
    assert read[OTHER].good_calls == 0


def test_the_rest_are_one_until_they_are_clearly_busier() -> None:
    clock = Clock()
    busiest = Busiest(2, clock)
    call(busiest, "a", 10)
    call(busiest, "b", 3)
    call(busiest, "c", 6)
    assert calls(busiest) == {"a": 10, "b": 3, OTHER: 6}
    clock.minute()
    assert calls(busiest) == {"a": 10, "b": 3, OTHER: 6}, "twice as many is not more than twice as many"
    call(busiest, "a", 10)
    call(busiest, "b", 3)
    call(busiest, "c", 7)
    assert calls(busiest) == {"a": 20, "b": 6, OTHER: 13}, "no exchange before a minute is over"
    clock.minute()
    assert calls(busiest) == {"a": 20, "b": 6, "c": 0, OTHER: 13}
    assert calls(busiest) == {"a": 20, "c": 0, OTHER: 13}
    call(busiest, "c")
    call(busiest, "b")
    assert calls(busiest) == {"a": 20, "c": 1, OTHER: 14}


def test_one_that_comes_back_goes_on_where_it_stood() -> None:
    clock = Clock()
    busiest = Busiest(1, clock)
    call(busiest, "a", 5)
    call(busiest, "b", 20)
    clock.minute()
    busiest.read()
    call(busiest, "a", 9)
    clock.minute()
    busiest.read()
    assert calls(busiest) == {"a": 5, OTHER: 29}
    call(busiest, "a")
    assert calls(busiest) == {"a": 6, OTHER: 29}


def test_whatever_happens_no_series_falls_and_their_sum_is_every_call() -> None:
    rng, clock = random.Random(5), Clock()
    busiest = Busiest(3, clock)
    last: dict[str, int] = {}
    ever = 0
    for _ in range(200):
        hot = [f"n{rng.randrange(12)}" for _ in range(3)]
        for _ in range(rng.randrange(40)):
            call(busiest, rng.choice([*hot, f"n{rng.randrange(12)}"]))
            ever += 1
        if rng.random() < 0.7:
            clock.minute()
        seen = calls(busiest)
        assert len(seen) <= 7
        assert all(value >= last.get(name, 0) for name, value in seen.items())
        last |= seen
        assert sum(last.values()) == ever, "those that left keep what they had"


def test_no_names_at_all() -> None:
    busiest = Busiest(0)
    call(busiest, "a", 2)
    assert calls(busiest) == {OTHER: 2}


def test_memory_is_bounded() -> None:
    clock = Clock()
    busiest = Busiest(1, clock)
    for number in range(MOST_WATCHED + 100):
        call(busiest, f"n{number}")
    assert len(busiest._recent_others) == MOST_WATCHED
    for number in range(3 * REMEMBERED):
        call(busiest, f"hot{number}", 3)
        clock.minute()
        busiest.read()
    assert len(busiest._left) == REMEMBERED


def test_no_adapter_can_have_the_name_of_the_rest() -> None:
    with pytest.raises(InvalidRequestError):
        check_name(OTHER, param="name")
