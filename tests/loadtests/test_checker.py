import copy
from typing import Any

import pytest

from loadtests.checker import Checker, Verdict
from loadtests.targets import Target
from loadtests.timeline import Signature, Timeline
from loadtests.workload import Ask, Call

SHA, OTHER_SHA = "a" * 64, "b" * 64
MOOD = Target("mood", 3, SHA, frozenset({"bad", "good"}), "single_label_classification", False)
LIKENESS = Target("likeness", 1, OTHER_SHA, frozenset({"value"}), "regression", True)
GREEN, BLUE = Signature("1" * 64, "green"), Signature("2" * 64, "blue")


def call(*asks: Ask, mixed: bool = False) -> Call:
    if mixed:
        return Call("mixed", {"items": [{"adapter": ask.adapter, "text": ask.text} for ask in asks]}, asks)
    return Call("batch", {"adapter": asks[0].adapter, "inputs": [ask.text for ask in asks]}, asks)


def mood(probe: int | None = None) -> Ask:
    return Ask("mood", "A text.", None, probe)


def result(label: str, score: float) -> dict[str, Any]:
    return {"label": label, "score": score, "scores": [{"label": label, "score": score}], "n_tokens": 5}


def answer(*results: dict[str, Any], adapter: str = "mood", version: int = 3, sha256: str = SHA) -> dict[str, Any]:
    return {"adapter": adapter, "version": version, "sha256": sha256, "results": list(results)}


GOOD = answer(result("good", 0.9), result("bad", 0.6))


def check(asked: Call, body: Any, status: int = 200, checker: Checker | None = None) -> Verdict:
    return (checker or Checker([MOOD, LIKENESS], {})).check(asked, status, body, 10.0, 11.0)


@pytest.fixture
def informed() -> Checker:
    """Knows that probe 0 gives mood 'good' with 0.9, probe 1 an even 0.51, and likeness 3.5."""
    checker = Checker([MOOD, LIKENESS], {})
    for probe, good in ((0, 0.9), (1, 0.51)):
        scores = [{"label": "good", "score": good}, {"label": "bad", "score": 1 - good}]
        body = answer({**scores[0], "scores": scores})
        checker.learn(Call("probe", {"adapter": "mood", "inputs": ["x"], "top_k": None}, (mood(probe),)), body)
    asked = call(Ask("likeness", "a", "b", 0))
    checker.learn(asked, answer({"value": 3.5}, adapter="likeness", version=1, sha256=OTHER_SHA))
    return checker


def test_a_right_answer_passes() -> None:
    assert check(call(mood(), mood()), GOOD) == Verdict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": "topic"}, "topic answered"),
        ({"version": 2}, "version 2"),
        ({"sha256": OTHER_SHA}, OTHER_SHA[:12]),
    ],
)
def test_another_name_version_or_hash_is_a_wrong_adapter(changes: dict[str, Any], reason: str) -> None:
    verdict = check(call(mood(), mood()), {**GOOD, **changes})
    assert len(verdict.wrong_rows) == 2
    assert reason in verdict.wrong_rows[0]


def test_a_label_of_another_adapter_is_a_wrong_adapter_and_only_its_row_is_counted() -> None:
    verdict = check(call(mood(), mood()), answer(result("good", 0.9), result("spam", 0.6)))
    assert verdict.wrong_rows == ("mood: 'spam' is no label of it",)


def test_each_row_of_the_mixed_form_answers_for_itself() -> None:
    asked = call(mood(), Ask("likeness", "a", "b"), mixed=True)
    rows = [
        {"adapter": "mood", "version": 3, "sha256": SHA, **result("good", 0.9)},
        {"adapter": "likeness", "version": 1, "sha256": OTHER_SHA, "value": 2.5},
    ]
    assert check(asked, {"results": rows}) == Verdict()
    swapped = check(asked, {"results": rows[::-1]})
    assert swapped.wrong_rows == ("mood: likeness answered", "likeness: mood answered")


@pytest.mark.parametrize(("probe", "label", "score"), [(0, "good", 0.93), (0, "good", 0.85), (1, "bad", 0.52)])
def test_a_probe_may_differ_within_the_tolerance(informed: Checker, probe: int, label: str, score: float) -> None:
    assert check(call(mood(probe)), answer(result(label, score)), checker=informed) == Verdict()


@pytest.mark.parametrize(("probe", "label", "score"), [(0, "good", 0.7), (0, "bad", 0.12), (1, "good", 0.95)])
def test_a_probe_that_differs_by_more_is_a_wrong_adapter(
    informed: Checker, probe: int, label: str, score: float
) -> None:
    verdict = check(call(mood(probe)), answer(result(label, score)), checker=informed)
    assert len(verdict.wrong_rows) == 1
    assert "alone" in verdict.wrong_rows[0]


@pytest.mark.parametrize(("value", "is_wrong"), [(3.55, False), (2.9, True)])
def test_a_regression_probe_is_compared_by_value(informed: Checker, value: float, is_wrong: bool) -> None:
    body = answer({"value": value}, adapter="likeness", version=1, sha256=OTHER_SHA)
    assert bool(check(call(Ask("likeness", "a", "b", 0)), body, checker=informed).wrong_rows) is is_wrong


def test_learning_from_a_wrong_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="topic answered"):
        Checker([MOOD], {}).learn(call(mood(0)), answer(result("good", 0.9), adapter="topic"))


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (500, {"error": {"code": "INTERNAL", "message": "oh"}}, "HTTP 500 INTERNAL: oh"),
        (404, {"error": {"code": "ADAPTER_NOT_FOUND", "message": "mood"}}, "HTTP 404"),
        (0, None, "HTTP 0"),
        (503, "text", "HTTP 503"),
    ],
)
def test_another_status_is_a_fault(status: int, body: Any, fault: str) -> None:
    verdict = check(call(mood()), body, status)
    assert verdict.fault
    assert verdict.fault.startswith(fault)
    assert not verdict.is_absent


def test_a_refused_text_is_a_fault() -> None:
    verdict = check(call(mood(), mood()), answer(result("good", 0.9), {"error": {"code": "BLANK_TEXT"}}))
    assert verdict.fault == "mood: a good text is refused, BLANK_TEXT"


@pytest.mark.parametrize("broken", ["results", "adapter", "version", "sha256"])
def test_a_missing_member_is_a_fault(broken: str) -> None:
    body = copy.deepcopy(GOOD)
    del body[broken]
    assert check(call(mood(), mood()), body).fault


@pytest.mark.parametrize("body", [None, [], "text", {"results": None}, {**GOOD, "results": ["x", "y"]}])
def test_a_body_of_another_shape_is_a_fault(body: Any) -> None:
    assert check(call(mood(), mood()), body).fault


def test_an_adapter_may_abstain() -> None:
    assert check(call(mood()), answer({**result("good", 0.6), "label": None})) == Verdict()


@pytest.mark.parametrize("changes", [{"label": "bad"}, {"score": 0.5}])
def test_a_label_or_score_that_contradicts_the_scores_is_a_fault(changes: dict[str, Any]) -> None:
    assert "in scores" in (check(call(mood()), answer({**result("good", 0.9), **changes})).fault or "")


def test_too_few_results_are_a_fault() -> None:
    assert "2 rows asked, 1 answered" in (check(call(mood(), mood()), answer(result("good", 0.9))).fault or "")


class TestChanging:
    """`load/x` was GREEN from 1, and is BLUE since 5."""

    ask = Ask("load/x", "A text.", None)

    @pytest.fixture
    def timeline(self) -> Timeline:
        timeline = Timeline()
        timeline.settle(timeline.begin(GREEN, 1), 2)
        timeline.settle(timeline.begin(BLUE, 5), 6)
        timeline.name_version(GREEN.sha256, 1)
        timeline.name_version(BLUE.sha256, 2)
        return timeline

    def check(self, timeline: Timeline, signature: Signature, version: int, label: str, score: float = 1.0) -> Verdict:
        body = answer(result(label, score), adapter="load/x", version=version, sha256=signature.sha256)
        return check(call(self.ask), body, checker=Checker([MOOD], {"load/x": timeline}))

    def test_its_own_answer_passes(self, timeline: Timeline) -> None:
        assert self.check(timeline, BLUE, 2, "blue") == Verdict()

    def test_a_version_that_was_replaced_before_is_a_wrong_adapter(self, timeline: Timeline) -> None:
        assert "not at any time" in self.check(timeline, GREEN, 1, "green").wrong_rows[0]

    def test_the_right_hash_over_the_label_of_other_bytes_is_a_wrong_adapter(self, timeline: Timeline) -> None:
        assert "can only give 'blue'" in self.check(timeline, BLUE, 2, "green").wrong_rows[0]

    def test_a_middling_score_is_a_wrong_adapter(self, timeline: Timeline) -> None:
        assert self.check(timeline, BLUE, 2, "blue", 0.8).wrong_rows

    def test_another_number_for_the_same_bytes_is_a_wrong_adapter(self, timeline: Timeline) -> None:
        assert "it is 2" in self.check(timeline, BLUE, 3, "blue").wrong_rows[0]

    def test_not_found_is_right_only_while_it_is_being_removed(self, timeline: Timeline) -> None:
        checker = Checker([MOOD], {"load/x": timeline})
        assert check(call(self.ask), {}, 404, checker).fault
        timeline.begin(None, 10.5)
        assert check(call(self.ask), {}, 404, checker) == Verdict(is_absent=True)
        assert check(call(mood()), {}, 404, checker).fault
