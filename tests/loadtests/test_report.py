from pathlib import Path
from typing import Any

import pytest

from loadtests.report import notes, plot, problems, summarise, table
from loadtests.samples import CLASSIFY_KINDS, Sample


def sample(
    kind: str = "single", at_s: float = 0.0, latency_s: float = 0.01, outcome: str = "ok", rows: int = 1
) -> Sample:
    return Sample(at_s, latency_s, kind, 200, rows if outcome == "ok" else 0, 1, outcome)


COMPLETE = [sample(kind, at_s=0.99) for kind in (*CLASSIFY_KINDS, "register", "changed")]
CLEAN: dict[str, Any] = {
    "adapters": 5,
    "has_pairs": True,
    "artefacts_made": 3,
    "wrong_rows": 0,
    "wrong_examples": [],
    "faults": {},
    "exceptions": [],
    "generator_cpu_share": 0.4,
}


def test_rates_are_over_the_time_until_the_last_answer() -> None:
    samples = [sample(rows=8, kind="batch", at_s=second) for second in range(4)] + [sample(at_s=3.99)]
    summary = summarise(samples)
    assert summary["seconds"] == 4.0
    assert summary["kinds"]["batch"]["requests_per_s"] == 1.0
    assert summary["kinds"]["batch"]["rows_per_s"] == 8.0
    assert summary["classify"]["rows_per_s"] == 8.2


def test_percentiles_are_of_answered_requests_only() -> None:
    samples = [sample(latency_s=number / 1000) for number in range(1, 101)]
    figures = summarise([*samples, sample(latency_s=9.0, outcome="failed")])["classify"]
    assert (figures["p50_s"], figures["p95_s"], figures["p99_s"]) == (0.05, 0.095, 0.099)
    assert (figures["requests"], figures["ok"], figures["failed"]) == (101, 100, 1)


def test_writes_do_not_count_as_classification() -> None:
    assert summarise([sample(), sample("register"), sample("changed")])["classify"]["requests"] == 1


def test_nothing_measured_gives_a_summary_and_fails() -> None:
    summary = summarise([])
    assert summary["classify"]["requests"] == 0
    assert problems(summary, CLEAN)


def test_a_complete_clean_run_has_no_problems() -> None:
    assert problems(summarise(COMPLETE), CLEAN) == []


@pytest.mark.parametrize("kind", [*CLASSIFY_KINDS, "register", "changed"])
def test_a_kind_that_was_never_answered_is_a_problem(kind: str) -> None:
    samples = [one for one in COMPLETE if one.kind != kind]
    assert problems(summarise(samples), CLEAN) == [f"no {kind} request was answered"]


def test_a_kind_that_was_only_ever_absent_is_a_problem() -> None:
    samples = [one._replace(outcome="absent") if one.kind == "changed" else one for one in COMPLETE]
    assert problems(summarise(samples), CLEAN) == ["no changed request was answered"]


def test_pairs_are_not_expected_where_no_adapter_takes_them() -> None:
    samples = [one for one in COMPLETE if one.kind != "pair"]
    assert problems(summarise(samples), {**CLEAN, "has_pairs": False}) == []


@pytest.mark.parametrize(
    ("outcome", "changes", "line"),
    [
        ("wrong", {"wrong_rows": 2, "wrong_examples": ["mood: topic answered"]}, "2 answers of a wrong adapter"),
        ("failed", {"faults": {"HTTP 500": 1}}, "1 requests failed, such as: HTTP 500"),
        ("failed", {}, "1 requests failed, such as: no reply"),
        ("refused", {}, "1 requests were refused with 429"),
        ("ok", {"exceptions": ["KeyError (3 times)"]}, "a user raised KeyError (3 times)"),
    ],
)
def test_each_kind_of_failure_is_a_problem(outcome: str, changes: dict[str, Any], line: str) -> None:
    (found,) = problems(summarise([*COMPLETE, sample(outcome=outcome)]), {**CLEAN, **changes})
    assert found.startswith(line)


def test_an_adapter_rightly_absent_is_no_problem() -> None:
    assert problems(summarise([*COMPLETE, sample(outcome="absent")]), CLEAN) == []


def test_a_busy_generator_is_noted() -> None:
    assert notes(CLEAN) == []
    assert "95% of a core" in notes({**CLEAN, "generator_cpu_share": 0.95})[0]


def test_the_table_has_a_line_for_each_kind_and_one_for_all() -> None:
    lines = table(summarise([*COMPLETE, sample(outcome="wrong")])).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [*CLASSIFY_KINDS, "changed", "register", "all classify"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[-1] == "1"


def test_the_table_shows_milliseconds_and_a_dash_where_nothing_was_answered() -> None:
    lines = table(summarise([sample(latency_s=0.0123), sample("batch", outcome="failed")])).splitlines()
    assert lines[1].split()[5:8] == ["12.3", "12.3", "12.3"]
    assert lines[2].split()[5:8] == ["-", "-", "-"]


@pytest.mark.parametrize("samples", [[], COMPLETE, [sample(at_s=second) for second in (0, 1, 5)]])
def test_the_picture_is_a_png_whatever_was_measured(tmp_path: Path, samples: list[Sample]) -> None:
    plot(samples, tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
