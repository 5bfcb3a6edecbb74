from collections import Counter

import pytest

from adakron.cli_glue import SUITE_NAMES
from adakron.errors import ConfigError, DataError
from adakron.training.glue.suites import SUITES, changed
from adakron.training.glue.tasks import TASKS
from adakron.training.methods import METHODS


def test_the_command_line_knows_every_suite() -> None:
    assert tuple(SUITES) == SUITE_NAMES


def test_every_method_tries_as_many_rates_on_every_task() -> None:
    plan = changed(SUITES["full"], attempts=3, seeds=(1, 2)).plan()
    counts = Counter((run.method.name, run.task.name, run.recipe.seed) for run in plan)
    assert set(counts.values()) == {3}
    assert len(counts) == 6 * 8 * 2
    tried = {(r.method.name, r.task.name, r.recipe.seed, r.recipe.lr, r.strength) for r in plan}
    assert len(tried) == len(plan)


def test_methods_share_all_but_what_is_theirs() -> None:
    """Same rows, epochs, batches, early stopping and seeds."""
    own = {"name", "method", "lr", "bottleneck", "factor", "first_layer"}
    for suite in SUITES.values():
        shared: dict[str, dict[str, object]] = {}
        for run in suite.plan():
            settings = {key: value for key, value in run.recipe.to_dict().items() if key not in own}
            settings |= {"validation": run.validation, "selection": run.selection}
            assert shared.setdefault(run.task.name, settings) == settings


def test_the_first_rate_is_tried_everywhere_before_the_second() -> None:
    plan = [run for run in changed(SUITES["full"], attempts=2).plan() if run.strength is None]
    assert [run.attempt for run in plan] == sorted(run.attempt for run in plan)


def test_the_probe_makes_all_its_attempts_in_a_row() -> None:
    plan = changed(SUITES["full"], attempts=3, tasks=["rte"]).plan()
    places = [number for number, run in enumerate(plan) if run.method.name == "probe"]
    assert places == list(range(places[0], places[0] + 3))
    assert [plan[number].strength for number in places] == [1.0, 10.0, 0.1]


@pytest.mark.parametrize(("name", "bottleneck"), [("paper-bert", 48), ("paper-roberta", 16)])
def test_the_paper_s_settings_are_the_authors(name: str, bottleneck: int) -> None:
    runs = {(run.method.name, run.task.name): run for run in SUITES[name].plan()}
    assert len(runs) == len(METHODS) * len(TASKS)
    recipes = {task: runs["adakron", task].recipe for task in TASKS}
    assert {task: recipe.lr for task, recipe in recipes.items() if recipe.lr != 3e-4} == {"rte": 5e-4, "qqp": 5e-4}
    assert {task: recipe.max_length for task, recipe in recipes.items() if recipe.max_length != 128} == {"rte": 256}
    assert {task: recipe.epochs for task, recipe in recipes.items()} == {
        **dict.fromkeys(("mnli", "qnli", "sst2"), 20),
        **dict.fromkeys(("mrpc", "rte", "qqp"), 60),
        **dict.fromkeys(("cola", "stsb"), 80),
    }
    for recipe in recipes.values():
        assert (recipe.batch, recipe.warmup, recipe.weight_decay, recipe.max_rows) == (64, 0.06, 0.1, None)
        assert (recipe.bottleneck, recipe.factor) == (bottleneck, 4)


def test_the_command_line_wins_over_the_suite() -> None:
    suite = changed(
        SUITES["full"], backbone="other", methods=["lora"], tasks=["cola"], max_rows=0, seeds=(4,), epochs=7
    )
    (run,) = suite.plan()
    assert (run.recipe.backbone, run.method.name, run.task.name) == ("other", "lora", "cola")
    assert (run.recipe.max_rows, run.recipe.seed, run.recipe.epochs) == (None, 4, 7)
    assert changed(SUITES["full"], max_rows=50, tasks=["cola"]).plan()[0].recipe.max_rows == 50


def test_unknown_names_and_too_many_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="no method 'soup'"):
        changed(SUITES["quick"], methods=["soup"])
    with pytest.raises(DataError, match="no GLUE task 'wnli'"):
        changed(SUITES["quick"], tasks=["wnli"])
    with pytest.raises(ConfigError, match="at most 5"):
        changed(SUITES["quick"], attempts=6).plan()


def test_quick_is_within_its_bounds() -> None:
    quick = SUITES["quick"]
    assert set(quick.tasks) == {"sst2", "cola", "rte", "stsb", "mrpc"}
    assert set(quick.methods) == {"adakron", "pfeiffer", "lora", "probe", "full"}
    assert all((quick.rows_of(task) or 10**9) <= 3000 for task in quick.tasks)
    assert all((SUITES["full"].rows_of(task) or 10**9) <= 8000 for task in SUITES["full"].tasks)
