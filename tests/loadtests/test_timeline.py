import math

from loadtests.timeline import Signature, Timeline

A, B, C = (Signature(letter * 64, letter) for letter in "abc")


def test_a_new_name_is_absent() -> None:
    assert Timeline().possible(0, 1) == [None]
    assert Timeline().current is None


def test_between_begin_and_settle_old_and_new_are_both_right() -> None:
    timeline = Timeline()
    timeline.begin(A, 10)
    assert timeline.possible(10, 11) == [None, A]


def test_a_request_answered_before_the_change_began_cannot_see_it() -> None:
    timeline = Timeline()
    timeline.begin(A, 10)
    assert timeline.possible(5, 9) == [None]


def test_a_request_sent_after_the_change_settled_sees_only_the_new() -> None:
    timeline = Timeline()
    timeline.settle(timeline.begin(A, 10), 12)
    assert timeline.possible(12, 13) == [A]
    assert timeline.possible(11.9, 13) == [None, A]


def test_a_request_that_spans_several_changes_may_see_any_of_them() -> None:
    timeline = Timeline()
    timeline.settle(timeline.begin(A, 1), 2)
    timeline.settle(timeline.begin(B, 3), 4)
    timeline.settle(timeline.begin(C, 5), 6)
    assert timeline.possible(2.5, 5.5) == [A, B, C]
    assert timeline.possible(4, 4.9) == [B]
    assert timeline.possible(7, 8) == [C]


def test_an_unsettled_change_leaves_the_old_possible_until_a_later_one_settles() -> None:
    timeline = Timeline()
    timeline.settle(timeline.begin(A, 1), 2)
    timeline.begin(B, 3)
    assert timeline.possible(100, 101) == [A, B]
    timeline.settle(timeline.begin(C, 102), 103)
    assert timeline.possible(104, 105) == [C]


def test_an_abandoned_change_never_was() -> None:
    timeline = Timeline()
    timeline.settle(timeline.begin(A, 1), 2)
    timeline.abandon(timeline.begin(B, 3))
    assert timeline.possible(3, 4) == [A]
    assert timeline.current == A


def test_removal_makes_absence_possible_and_then_certain() -> None:
    timeline = Timeline()
    timeline.settle(timeline.begin(A, 1), 2)
    removal = timeline.begin(None, 3)
    assert timeline.possible(3, 4) == [A, None]
    timeline.settle(removal, 5)
    assert timeline.possible(6, math.inf) == [None]


def test_versions_are_known_once_the_server_has_said_them() -> None:
    timeline = Timeline()
    assert timeline.version(A.sha256) is None
    timeline.name_version(A.sha256, 4)
    assert timeline.version(A.sha256) == 4
