import statistics

import pytest

from adakron.training.glue.table import PUBLISHED, known_methods, make_table, markdown, plain
from adakron.training.glue.tasks import TASKS
from tests.adakron.training.glue.made import result


def whole(method: str, value: float) -> list:
    return [result(method, task, value) for task in TASKS]


def test_the_published_averages_follow_from_the_published_scores() -> None:
    """So it is one score a task that counts, the same eight as here."""
    for _, scores, average in PUBLISHED.values():
        assert statistics.fmean(scores) == pytest.approx(average, abs=0.07)  # Pfeiffer's 82.76 is cut, not rounded


def test_an_average_is_the_mean_of_the_eight_that_count() -> None:
    results = [result("adakron", task, 0.1 * number) for number, task in enumerate(TASKS)]
    table = make_table(results, TASKS, ["adakron"])
    assert table.is_whole
    assert table.lines[0].average(table.tasks) == pytest.approx(35.0)
    assert plain(table, "x").splitlines()[-1].endswith("35.0")


def test_without_a_task_there_is_no_average_and_the_table_says_partial() -> None:
    results = [*whole("adakron", 0.5), *whole("lora", 0.5)[:-1]]
    table = make_table(results, TASKS, ["adakron", "lora"])
    assert [line.average(table.tasks) for line in table.lines] == [pytest.approx(50.0), None]
    text = plain(table, "mark")
    assert "PARTIAL" in text
    assert [line.rpartition(" ")[2] for line in text.splitlines()[-2:]] == ["50.0", "-"]
    assert markdown(table).splitlines()[-1].endswith("| - | - |")
    assert "PARTIAL" not in plain(make_table(results, TASKS, ["adakron"]), "mark")


def test_the_best_rate_counts_and_as_many_for_every_method() -> None:
    results = [
        result("adakron", "rte", 0.5, attempt=0),
        result("adakron", "rte", 0.6, attempt=1),
        result("adakron", "rte", 0.9, attempt=2),
        result("lora", "rte", 0.7, attempt=0),
        result("lora", "rte", 0.4, attempt=1),
    ]
    table = make_table(results, ["rte"], ["adakron", "lora"])
    assert [line.scores["rte"][0] for line in table.lines] == [pytest.approx(60.0), pytest.approx(70.0)]
    assert table.attempts == {"rte": 2}


def test_a_rate_tried_out_of_turn_does_not_count() -> None:
    results = [result("adakron", "rte", 0.5), result("adakron", "rte", 0.9, attempt=2)]
    assert make_table(results, ["rte"], ["adakron"]).attempts == {"rte": 1}


def test_seeds_are_averaged_over_those_that_every_method_has() -> None:
    results = [
        result("adakron", "rte", 0.5, seed=1),
        result("adakron", "rte", 0.7, seed=2),
        result("adakron", "rte", 0.0, seed=3),
        result("lora", "rte", 0.6, seed=1),
        result("lora", "rte", 0.6, seed=2),
    ]
    table = make_table(results, ["rte"], ["adakron", "lora"])
    assert [line.scores["rte"][0] for line in table.lines] == [pytest.approx(60.0), pytest.approx(60.0)]
    assert table.seeds == {"rte": (1, 2)}


def test_results_on_other_rows_do_not_count() -> None:
    few = {"train": 10, "validation": 50, "selection": 50, "note": None}
    results = [result("adakron", "rte", 0.9, rows=few), result("adakron", "rte", 0.5), result("lora", "rte", 0.6)]
    table = make_table(results, ["rte"], ["adakron", "lora"])
    assert table.lines[0].scores["rte"][0] == pytest.approx(50.0)


def test_methods_without_results_are_left_out_and_variants_come_last() -> None:
    results = [result("adakron-open", "rte", 0.5), result("full", "rte", 0.5), result("adakron", "rte", 0.5)]
    assert known_methods(results) == ["adakron", "full", "adakron-open"]
    table = make_table(results, ["rte"], ["adakron", "lora", "adakron-open"])
    assert [line.title for line in table.lines] == ["AdaKron r48", "AdaKron r48, open start"]
