from server.submission import Stages
from server.tally import MAX_TALLIED, Count, Tally, joined

A, B = "a" * 64, "b" * 64


def test_calls_rows_batches_and_times_add_up() -> None:
    tally = Tally()
    tally.ran({A, B})
    tally.ran({A})
    tally.answered(A, 3, 1, Stages(1.0, 2.0, 4.0))
    tally.answered(A, 0, 2, Stages(1.0, 2.0, 4.0))
    tally.answered(A, 0, 2, None)
    counts = tally.counts()
    last_s = counts[A].last_s
    assert counts[A] == Count(1, 2, 3, 2, 1.0, 2.0, 4.0, last_s)
    assert last_s > 0
    assert counts[B] == Count(batches=1)


def test_counts_are_copies_of_those_asked_for() -> None:
    tally = Tally()
    tally.ran({A})
    tally.counts([A, B])[A].batches = 9
    assert tally.counts([A, B]) == {A: Count(batches=1)}


def test_those_not_asked_for_longest_are_forgotten() -> None:
    tally = Tally()
    for number in range(MAX_TALLIED):
        tally.ran([str(number)])
    tally.ran(["0"])
    tally.ran(["one more"])
    counts = tally.counts()
    assert len(counts) == MAX_TALLIED
    assert "0" in counts
    assert "1" not in counts


def test_joined_sums_and_keeps_the_last_time() -> None:
    one, other = Count(1, 2, 3, 4, 1.0, 2.0, 3.0, 50.0), Count(10, 20, 30, 40, 1.0, 1.0, 1.0, 40.0)
    assert joined([{A: one}, {A: other, B: one}]) == {A: Count(11, 22, 33, 44, 2.0, 3.0, 4.0, 50.0), B: one}
