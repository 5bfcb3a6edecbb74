import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adakron.errors import DataError
from adakron.training.glue.report import BEGIN, END, conditions, page_part, write_page
from adakron.training.glue.results import ResultFile
from adakron.training.glue.tasks import TASKS
from tests.adakron.training.glue.made import result

RESULTS = [result(method, task, 0.5) for method in ("adakron", "full") for task in TASKS]


def test_the_part_says_what_is_whose() -> None:
    text = page_part(RESULTS, "glue.png")
    assert "| AdaKron r48 | 1,000 | 50.0 |" in text
    assert "**The paper's own table**" in text
    assert "| AdaKron r48 | 0.6 M | 83.5 | 91.1 | 92.0 | 87.1 | 90.8 | 61.1 | 73.8 | 89.4 | 83.6 |" in text
    assert "* RTE: 100 training rows, 60 epochs at most, one learning rate, one seed, 50 validation rows" in text
    assert "one learning rate a method and task. AVX2 with 2 cores, float32; 2026-11-26." in text
    assert "PARTIAL" not in text
    assert "PARTIAL" in page_part(RESULTS[:-1], "glue.png")


def test_the_page_of_this_project_is_what_its_results_say(project_dir: Path) -> None:
    page = (project_dir / "docs" / "glue.md").read_text(encoding="utf-8")
    results = ResultFile(project_dir / "docs" / "glue.jsonl").read()
    assert f"{BEGIN}\n\n{page_part(results, 'glue.png')}\n\n{END}" in page
    assert (project_dir / "docs" / "glue.png").is_file() == bool(results)


def test_the_conditions_are_those_of_the_results() -> None:
    said = conditions([*RESULTS, *(result(r.method, r.task, 0.1, attempt=1) for r in RESULTS)])
    assert said == (
        "backbone bert-base-uncased; at most 100 training rows a task; one seed; "
        "the best of up to 2 learning rates a method and task."
    )


def test_seeds_that_one_method_lacks_are_not_claimed() -> None:
    more = [*RESULTS, *(replace(r, seed=r.seed + 1, key=f"{r.key}+") for r in RESULTS)]
    first = RESULTS[0]
    assert "; the mean of up to 2 seeds; " in conditions(more)
    assert "one learning rate, 2 seeds, " in page_part(more, "glue.png")
    assert "; one seed; " in conditions([*RESULTS, *(r for r in more[len(RESULTS) :] if r.method != first.method)])


def test_a_page_keeps_what_is_around_the_results(tmp_path: Path) -> None:
    page = tmp_path / "glue.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert write_page(page, RESULTS) == [page, tmp_path / "glue.png"]
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    write_page(page, RESULTS)
    assert page.read_text() == text
    assert (tmp_path / "glue.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_that_is_not_there_is_made(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "glue.md", RESULTS)
    assert (tmp_path / "new" / "glue.md").read_text().startswith("# GLUE\n")


def test_without_matplotlib_there_is_a_page_and_no_picture(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_page(tmp_path / "glue.md", RESULTS) == [tmp_path / "glue.md"]


def test_a_page_without_a_place_for_results_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "glue.md"
    page.write_text("# Something else\n")
    with pytest.raises(DataError, match="expected the lines"):
        write_page(page, RESULTS)
    assert page.read_text() == "# Something else\n"


def test_no_results_are_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results to write"):
        write_page(tmp_path / "glue.md", [])
