from dataclasses import replace

import pytest

from loadtests.engine_outcome import B0, UNIFORM, Case, Entrant, Exactness, Outcome, tokens_contest
from loadtests.engine_plan import FULL
from loadtests.engine_targets import BANK_BYTES, CPU_TARGETS, CUDA_TARGETS, Target, judge, targets_line

EMPTY = Case("default", "bfloat16", "cpu", "made up")


def raced(contest: str, system: str, against: str, ratio: float) -> Outcome:
    """An outcome in which `system` is `ratio` times as fast as `against`."""
    entrants = tuple(Entrant(name, 10, 100, 1, 1) for name in (system, against))
    return Outcome(contest, entrants, ({system: 1.0, against: ratio},) * 3)


def case_with(target: Target, ratio: float, dtype: str = "bfloat16", device: str = "cpu") -> Case:
    outcome = raced(target.contest, target.system, target.against, ratio)
    return Case("default", dtype, device, "made up", outcomes={target.contest: outcome})


def status_of(case: Case, title: str) -> str:
    return next(verdict.status for verdict in judge(case) if verdict.title == title)


@pytest.mark.parametrize("target", CPU_TARGETS, ids=lambda target: target.title)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_target_is_met_at_its_bound_and_short_below(target: Target, dtype: str) -> None:
    bound = target.bound_in(dtype)
    assert status_of(case_with(target, bound, dtype), target.title) == "met"
    assert status_of(case_with(target, bound * 0.999, dtype), target.title) == "short"


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.title)
def test_a_gpu_has_targets_of_its_own(target: Target) -> None:
    assert status_of(case_with(target, target.bound, device="cuda"), target.title) == "met"
    assert status_of(case_with(target, target.bound * 0.999, device="cuda"), target.title) == "short"


def test_some_bounds_differ_in_float32() -> None:
    differing = {t.title: (t.bound, t.bound_float32) for t in CPU_TARGETS if t.bound_float32 is not None}
    assert differing == {"B0 vs floor": (0.60, 0.85), "vs B3, 64 rows over 64 tasks": (8, 2.5)}


def test_what_was_not_measured_is_said_to_be_so() -> None:
    assert {verdict.status for verdict in judge(EMPTY)} == {"not measured"}
    assert len(judge(EMPTY)) == len(CPU_TARGETS) + 2


def test_a_rival_that_was_skipped_leaves_its_target_unmeasured() -> None:
    target = next(target for target in CPU_TARGETS if "B1 at 64" in target.title)
    outcome = raced(target.contest, target.system, B0, 1.0)
    case = replace(EMPTY, outcomes={target.contest: outcome})
    assert status_of(case, target.title) == "not measured"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Exactness(10_000, 1e-6, 0, 1e-5), "met"),
        (Exactness(10_000, 2e-5, 0, 1e-5), "short"),
        (Exactness(10_000, 1e-6, 1, 1e-5), "short"),
        (Exactness(9_999, 1e-6, 0, 1e-5), "not measured"),
    ],
)
def test_exactness_wants_small_differences_no_flip_and_enough_texts(found: Exactness, status: str) -> None:
    assert judge(replace(EMPTY, exactness=found))[-2].status == status


@pytest.mark.parametrize(("size_bytes", "status"), [(BANK_BYTES, "met"), (BANK_BYTES + 1, "short")])
def test_memory_is_bounded(size_bytes: int, status: str) -> None:
    assert judge(replace(EMPTY, bank_bytes=size_bytes))[-1].status == status


def test_the_line_lists_every_target_with_its_figure() -> None:
    case = case_with(Target("", tokens_contest(2048), UNIFORM, B0, 0), 0.95)
    line = targets_line([case])
    assert "\n" not in line
    assert "1,000 adapters vs B0: met 0.95 (>= 0.92; quartiles 0.95 to 0.95);" in line
    assert line.count("not measured") == len(CPU_TARGETS) + 1


def test_the_line_of_several_cases_says_of_which_each_figure_is() -> None:
    target = CPU_TARGETS[0]
    line = targets_line([case_with(target, 0.95), case_with(target, 0.5, "float32")])
    assert f"{target.title}: met 0.95 (>= 0.92; quartiles 0.95 to 0.95) [default bfloat16], short 0.5" in line
    assert line.count(target.title) == 1


@pytest.mark.parametrize("target", [*CPU_TARGETS, *CUDA_TARGETS], ids=lambda target: f"{target.title} {target.bound}")
def test_the_full_run_holds_every_contest_that_a_target_asks_for(target: Target) -> None:
    kind = target.contest.split()[-1]
    number = int(target.contest.split()[0]) if kind in ("tokens", "distinct", "registered") else 0
    held = {"tokens": FULL.tokens, "distinct": FULL.distinct, "registered": FULL.registered}
    assert number in held[kind] if number else FULL.fan_out
