import json
from pathlib import Path

import pytest

from loadtests.engine_outcome import B0, B1, ENGINE, UNIFORM, Case, Entrant, Outcome, distinct_contest, tokens_contest
from loadtests.engine_report import plot, table, write_document


@pytest.fixture
def case() -> Case:
    mixes = Outcome(
        tokens_contest(100),
        (Entrant(B0, 4, 100, 1, 0, 5_000_000), Entrant(UNIFORM, 4, 100, 3, 1000)),
        ({B0: 0.5, UNIFORM: 1.0}, {B0: 0.5, UNIFORM: 0.625}, {B0: 0.5, UNIFORM: 1.0}),
    )
    rivals = Outcome(
        distinct_contest(2), (Entrant(ENGINE, 8, 50, 2, 9), Entrant(B1, 8, 50, 2, 9)), ({ENGINE: 0.1, B1: 1.0},)
    )
    return Case("org/name", "float32", "cpu", "made up", outcomes={o.contest: o for o in (mixes, rivals)})


def test_a_line_has_batch_time_rates_ratio_and_memory(case: Case) -> None:
    lines = table(case.outcomes[tokens_contest(100)]).splitlines()
    assert lines[0] == "-- 100 tokens"
    bare, mixed = (line.split() for line in lines[2:])
    assert bare[-10:] == ["100", "-", "-", "3", "500.00", "500.00-500.00", "8", "200", "1.000", "5.0"]
    assert mixed[-10:] == ["100", "3", "1000", "3", "1000.00", "812.50-1000.00", "4", "100", "0.500", "-"]


def test_columns_line_up(case: Case) -> None:
    for outcome in case.outcomes.values():
        assert len({len(line) for line in table(outcome).splitlines()[1:]}) == 1


def test_there_is_no_ratio_without_b0(case: Case) -> None:
    assert table(case.outcomes[distinct_contest(2)]).splitlines()[2].split()[-2:] == ["-", "-"]


def test_the_document_has_a_point_a_system_and_every_target(case: Case, tmp_path: Path) -> None:
    write_document(tmp_path / "engine-cpu.json", [case], {"cores": 2})
    document = json.loads((tmp_path / "engine-cpu.json").read_text(encoding="utf-8"))
    assert document["conditions"] == {"cores": 2}
    (found,) = document["cases"]
    assert [point["system"] for point in found["points"]] == [B0, UNIFORM, ENGINE, B1]
    mixed = found["points"][1]
    assert (mixed["rows_per_s"], mixed["tokens_per_s"]) == (4.0, 100.0)
    assert mixed["ratio_to_b0"] == {"median": 0.5, "q1": 0.5, "q3": 0.65}
    assert mixed["peak_working_bytes"] is None
    assert found["points"][2]["ratio_to_b0"] is None
    assert {target["status"] for target in found["targets"]} == {"not measured"}


def test_the_picture_is_drawn(case: Case, tmp_path: Path) -> None:
    plot(case, tmp_path / "engine.png")
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    plot(Case("name", "float32", "cpu", "made up"), tmp_path / "engine.png")
    assert (tmp_path / "engine.png").exists()
