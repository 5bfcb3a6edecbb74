from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adakron.training.glue import runner
from adakron.training.glue.results import ResultFile
from adakron.training.glue.runner import describe, run_suite
from adakron.training.glue.suites import SUITES, changed


@pytest.fixture
def suite(backbone_folder: Path):
    small = changed(SUITES["full"], backbone=str(backbone_folder), tasks=["sst2"], max_rows=24, epochs=1)
    return replace(small, base=replace(small.base, max_length=24, bottleneck=12), selection=8)


def quiet(_: str) -> None:
    pass


def test_a_run_that_was_stopped_goes_on_where_it_was(suite, glue_folder: Path, tmp_path: Path, monkeypatch) -> None:
    suite = replace(suite, methods=("adakron", "probe", "full"))
    out, train = tmp_path / "results.jsonl", runner._train

    def stops(run, data, begin):
        if run.method.name == "full":
            raise KeyboardInterrupt
        return train(run, data, begin)

    monkeypatch.setattr(runner, "_train", stops)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, str(glue_folder), out, quiet)
    before = ResultFile(out).read()
    assert [result.method for result in before] == ["adakron", "probe"]

    trained = []
    monkeypatch.setattr(runner, "_train", lambda run, *rest: trained.append(run.method.name) or train(run, *rest))
    results = run_suite(suite, str(glue_folder), out, quiet)
    assert trained == ["full"]
    assert results[:2] == before
    assert [result.method for result in results] == ["adakron", "probe", "full"]
    assert run_suite(suite, str(glue_folder), out, quiet) == results
    assert trained == ["full"]


def test_other_settings_or_rows_are_another_run(suite, glue_folder: Path, tmp_path: Path) -> None:
    suite = replace(suite, methods=("probe",))
    out = tmp_path / "results.jsonl"
    others = (suite, replace(suite, attempts=2), replace(suite, max_rows=16), changed(suite, seeds=(5,)))
    keys = {result.key for other in others for result in run_suite(other, str(glue_folder), out, quiet)}
    assert len(keys) == len(ResultFile(out).read()) == 4


def test_a_result_says_what_was_done(suite, glue_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (result,) = run_suite(replace(suite, methods=("adakron",)), str(glue_folder), tmp_path / "r.jsonl", said.append)
    assert result.rows == {"train": 24, "validation": 24, "selection": 8, "note": None}
    assert result.parameters == {"method": 3 * (7 * 21 + 20 * 13), "head": 42}
    assert set(result.scores) >= {"accuracy", "f1", "matthews"}
    assert result.training["epochs"] == 1.0
    assert result.config["lr"] == 2e-3
    assert "dtype" not in result.config
    assert result.hardware["dtype"] in ("float32", "bfloat16")
    assert said[0] == "AdaKron r12 on SST-2, lr 0.002, seed 13, 24 rows"
    assert said[1].startswith("[1/1] AdaKron r12 on SST-2, lr 0.002, seed 13: accuracy ")


def test_runs_side_by_side_find_what_they_find_one_by_one(suite, glue_folder: Path, tmp_path: Path) -> None:
    suite = replace(suite, methods=("adakron", "probe"), tasks=("sst2", "stsb"))
    alone = run_suite(suite, str(glue_folder), tmp_path / "alone.jsonl", quiet, dtype="float32")
    said: list[str] = []
    both = run_suite(suite, str(glue_folder), tmp_path / "both.jsonl", said.append, jobs=2, dtype="float32")
    assert [(r.key, r.method, r.task) for r in both] == [(r.key, r.method, r.task) for r in alone]
    for one, other in zip(alone, both, strict=True):
        assert other.scores == pytest.approx(one.scores, abs=1e-3)  # another number of threads sums in another order
    assert [line.split()[0] for line in said] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert {r.key for r in ResultFile(tmp_path / "both.jsonl").read()} == {r.key for r in alone}


def test_a_distilled_adapter_learns_from_full_fine_tuning_at_its_own_rate(
    suite, glue_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    trained = []
    fit = runner.fit

    def record(model, backbone, data, recipe, schedule, metric, teacher=None):
        trained.append((recipe.lr, recipe.bottleneck, None if teacher is None else teacher.shape))
        return fit(model, backbone, data, recipe, schedule, metric, teacher)

    monkeypatch.setattr(runner, "fit", record)
    suite = replace(suite, methods=("adakron-distilled",))
    (result,) = run_suite(suite, str(glue_folder), tmp_path / "r.jsonl", quiet)
    assert trained == [(1e-4, 192, None), (2e-3, 192, (24, 2))]
    assert result.method == "adakron-distilled"


@pytest.mark.parametrize("method", ["adakron-mnli", "pfeiffer-mnli", "full-mnli"])
def test_a_method_may_begin_with_what_it_learnt_on_another_task(
    method: str, suite, glue_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    fitted = []
    fit = runner.fit

    def record(model, *rest):
        begun = model.trainable()
        outcome = fit(model, *rest)
        fitted.append((len(model.head.bias), begun, model.trainable()))
        return outcome

    monkeypatch.setattr(runner, "fit", record)
    suite = replace(suite, methods=(method,), tasks=("rte", "mrpc"))
    results = run_suite(suite, str(glue_folder), tmp_path / "r.jsonl", quiet)
    (mnli_labels, _, learnt), *others = fitted
    assert (mnli_labels, len(others)) == (3, 2)  # one training on MNLI for both
    body = [name for name in learnt if not name.startswith("head.")]
    for labels, begun, after in others:
        assert labels == 2
        assert all(torch.equal(begun[name], learnt[name].cpu()) for name in body)
        assert any(not torch.equal(after[name], learnt[name]) for name in body)
    assert [(r.method, r.config["first"]) for r in results] == [(method, "mnli")] * 2


def test_a_run_that_is_another_method_s_too_is_trained_once(
    suite, glue_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    trained, train = [], runner._train
    monkeypatch.setattr(runner, "_train", lambda run, *rest: trained.append(run.method.name) or train(run, *rest))
    out, both = tmp_path / "r.jsonl", replace(suite, methods=("full-mnli", "full"))
    results = run_suite(both, str(glue_folder), out, quiet)
    assert trained == ["full"]
    assert [r.method for r in results] == ["full-mnli", "full"]
    assert results[0].key != results[1].key
    assert replace(results[0], key="", method="") == replace(results[1], key="", method="")
    assert run_suite(both, str(glue_folder), out, quiet) == results == ResultFile(out).read()[::-1]

    later = tmp_path / "later.jsonl"
    run_suite(replace(suite, methods=("full",)), str(glue_folder), later, quiet)
    (again,) = run_suite(replace(suite, methods=("full-mnli",)), str(glue_folder), later, quiet)
    assert again.method == "full-mnli"
    assert trained == ["full", "full"]

    alone = run_suite(replace(suite, methods=("full-mnli",)), str(glue_folder), tmp_path / "alone.jsonl", quiet)
    assert (trained[-1], alone[0].scores) == ("full-mnli", results[0].scores)


def test_other_rows_of_the_first_task_are_another_run(suite, glue_folder: Path, tmp_path: Path) -> None:
    suite = replace(suite, methods=("adakron-mnli",), tasks=("rte",))
    other = replace(suite, task_rows={"mnli": 12})
    keys = {run_suite(s, str(glue_folder), tmp_path / "r.jsonl", quiet)[0].key for s in (suite, other)}
    assert len(keys) == 2


def test_rows_are_read_once_a_task_for_the_plan_of_all_its_runs(
    suite, glue_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    suite = replace(suite, methods=("probe",), tasks=("sst2", "stsb"), attempts=2, seeds=(13, 14))
    out = tmp_path / "r.jsonl"
    run_suite(suite, str(glue_folder), out, quiet)
    read = []
    load = runner.load_glue
    monkeypatch.setattr(runner, "load_glue", lambda task, *rest: read.append(task.name) or load(task, *rest))
    assert len(run_suite(suite, str(glue_folder), out, quiet)) == 8
    assert read == ["sst2", "stsb"]


def test_the_probe_reads_the_encoder_once_for_all_its_attempts(
    suite, glue_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    asked = []
    features = runner.probe_features
    monkeypatch.setattr(runner, "probe_features", lambda *a: asked.append(1) or features(*a))
    suite = replace(suite, methods=("probe",), attempts=3, tasks=("sst2", "stsb"))
    results = run_suite(suite, str(glue_folder), tmp_path / "r.jsonl", quiet)
    assert len(results) == 6
    assert len(asked) == 2
    assert {result.parameters["method"] for result in results} == {0}


def test_learnable_rows_are_learnt(suite, tmp_path: Path) -> None:
    """A word says the label: whoever stays at chance does not train."""
    from tests.adakron.training.glue.conftest import save_glue

    data = save_glue(tmp_path / "glue", train=96, validation=32)
    methods, rates = ("pfeiffer", "lora", "probe"), dict.fromkeys(("pfeiffer", "lora"), 2e-2)
    suite = replace(suite, methods=methods, rates=rates, max_rows=None, epochs={"": 8}, selection=None)
    results = run_suite(suite, str(data), tmp_path / "r.jsonl", quiet)
    assert {result.method: result.scores["accuracy"] > 0.75 for result in results} == dict.fromkeys(methods, True)


def test_runs_are_described_by_what_sets_them_apart() -> None:
    said = {describe(run) for run in changed(SUITES["full"], attempts=2).plan()}
    assert len(said) == 6 * 8 * 2
    assert "linear probe on MRPC, strength 10, seed 13" in said
