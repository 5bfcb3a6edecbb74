import random
from collections import Counter

from server.fair_queue import FairQueue


def alive(_: object) -> bool:
    return True


def filled(*rows: tuple[str, str, int]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for lane, entry, cost in rows:
        queue.push(lane, entry, cost)
    return queue


def test_take_from_an_empty_queue_is_empty() -> None:
    assert FairQueue[str]().take(10, alive) == []


def test_one_lane_is_first_in_first_out() -> None:
    queue = filled(*[("a", str(number), 1) for number in range(5)])
    assert queue.take(3, alive) == ["0", "1", "2"]
    assert queue.take(3, alive) == ["3", "4"]


def test_budget_is_exact() -> None:
    queue = filled(("a", "a1", 4), ("a", "a2", 3), ("b", "b1", 4), ("b", "b2", 3))
    assert sorted(queue.take(8, alive)) == ["a1", "b1"]
    assert sorted(queue.take(6, alive)) == ["a2", "b2"]


def test_a_row_over_the_budget_runs_alone() -> None:
    queue = filled(("a", "big", 100), ("b", "small", 1))
    assert queue.take(10, alive) == ["big"]
    assert queue.take(10, alive) == ["small"]


def test_a_row_that_does_not_fit_lets_another_lanes_row_in_and_comes_next() -> None:
    queue = filled(("a", "a1", 6), ("b", "b1", 6), ("c", "c1", 2))
    assert queue.take(8, alive) == ["a1", "c1"]
    queue.push("d", "d1", 1)
    assert queue.take(8, alive)[0] == "b1"


def test_a_lonely_row_waits_one_batch_behind_a_thousand_of_another_lane() -> None:
    queue = filled(*[("hot", f"hot{number}", 10) for number in range(1000)])
    queue.take(100, alive)
    queue.push("cold", "cold", 10)
    assert "cold" in queue.take(100, alive)


def test_a_lane_that_was_away_cannot_claim_the_time_it_was_away() -> None:
    queue = filled(*[("hot", "hot", 10) for _ in range(1000)])
    for _ in range(50):
        queue.take(100, alive)
    for _ in range(100):
        queue.push("late", "late", 10)
    assert Counter(queue.take(200, alive)) == {"hot": 10, "late": 10}


def test_lanes_share_by_cost_and_not_by_number_of_rows() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for _ in range(1000):
        queue.push("long", ("long", 50), 50)
        queue.push("short", ("short", 5), 5)
    served: Counter[str] = Counter()
    for _ in range(20):
        for lane, cost in queue.take(200, alive):
            served[lane] += cost
    assert abs(served["long"] - served["short"]) <= 100


def test_dead_entries_are_dropped_and_cost_nothing() -> None:
    queue = filled(("a", "dead1", 9), ("a", "a1", 5), ("b", "dead2", 9), ("c", "c1", 5))
    assert sorted(queue.take(10, lambda entry: not entry.startswith("dead"))) == ["a1", "c1"]
    assert len(queue) == 0


def test_only_dead_entries_give_an_empty_batch_and_an_empty_queue() -> None:
    queue = filled(("a", "a1", 1), ("b", "b1", 1))
    assert queue.take(10, lambda entry: False) == []
    assert len(queue) == 0


def test_many_lanes_that_do_not_fit_do_not_get_lost() -> None:
    queue = filled(*[(f"lane{number}", f"row{number}", 6) for number in range(100)])
    taken = [entry for _ in range(100) for entry in queue.take(10, alive)]
    assert sorted(taken) == sorted(f"row{number}" for number in range(100))


def test_everything_pushed_comes_out_once_in_lane_order_and_within_budget() -> None:
    draw = random.Random(7)
    queue: FairQueue[tuple[str, int, int]] = FairQueue()
    pushed: list[tuple[str, int, int]] = []
    taken: list[tuple[str, int, int]] = []
    for step in range(3000):
        if draw.random() < 0.7:
            entry = (f"lane{draw.randrange(40)}", step, draw.randint(1, 30))
            pushed.append(entry)
            queue.push(entry[0], entry, entry[2])
        else:
            batch = queue.take(64, alive)
            assert sum(cost for _, _, cost in batch) <= 64
            taken += batch
    while len(queue):
        taken += queue.take(64, alive)
    assert sorted(taken) == sorted(pushed)
    for lane in {lane for lane, _, _ in pushed}:
        steps = [step for name, step, _ in taken if name == lane]
        assert steps == sorted(steps)


def test_cost_is_that_of_all_that_waits() -> None:
    queue: FairQueue[int] = FairQueue()
    for n, lane in enumerate("abac"):
        queue.push(lane, n, 10 + n)
    assert queue.cost == 46
    taken = queue.take(30, lambda entry: entry != 0)
    assert queue.cost == 46 - 10 - sum(10 + n for n in taken)
    assert sorted([*taken, *queue.drain(), 0]) == [0, 1, 2, 3]
    assert (queue.cost, len(queue)) == (0, 0)
    assert queue.take(100, lambda _: True) == []
