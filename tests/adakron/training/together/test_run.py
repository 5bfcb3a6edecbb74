import pytest
import torch

from adakron import Adapter, Engine
from adakron.errors import ConfigError, DataError
from adakron.training.data import load_task
from adakron.training.run import Trained, linear_probe
from adakron.training.together import run
from adakron.training.together.lane import Lane
from adakron.training.together.run import Task, probe_together, train_together
from tests.adakron.training.together.lanes import METRICS, recipe

KINDS = {"single": "madakron-full", "pair": "adakron", "value": "adakron", "multi": "madakron-partial"}


def task(task_folder, backbone_folder, kind: str, name: str | None = None, **changes) -> Task:
    data = load_task(str(task_folder(kind)))
    settings = recipe(name or kind, **({"backbone": str(backbone_folder), "method": KINDS[kind]} | changes))
    return Task(settings, data, METRICS[data.problem_type])


def train(tasks: list[Task], **limits) -> tuple[dict[str, Trained], dict[str, str]]:
    trained: dict[str, Trained] = {}
    failures = train_together(tasks, lambda one, found: trained.update({one.recipe.name: found}), **limits)
    return trained, failures


def test_every_kind_of_task_is_learnt_beside_the_others_and_proved(task_folder, backbone_folder) -> None:
    changes = {"epochs": 12, "patience": 8, "encoder_dropout": 0.1, "dropout": 0.1}
    tasks = [task(task_folder, backbone_folder, kind, first_layer=len(kind) % 2, **changes) for kind in KINDS]
    trained, failures = train(tasks)
    assert failures == {}
    assert set(trained) == set(KINDS)
    engine = Engine.load(str(backbone_folder), device="cpu", dtype="float32", kernels="eager")
    for one in tasks:
        found = trained[one.recipe.name]
        assert found.scores[one.metric] > 0.75
        assert engine.check(found.adapter).examples == 3
        assert Adapter.from_bytes(found.adapter.to_bytes()).sha256 == found.adapter.sha256


def test_an_adapter_may_start_from_another_s_layers_beside_one_that_does_not(
    task_folder, backbone_folder, tmp_path
) -> None:
    before, _ = train([task(task_folder, backbone_folder, "pair", epochs=1)])
    before["pair"].adapter.write(tmp_path / "pair")
    still = {"epochs": 1, "lr": 1e-9, "weight_decay": 0.0}
    after, failures = train(
        [
            task(task_folder, backbone_folder, "value", start_from=str(tmp_path / "pair"), **still),
            task(task_folder, backbone_folder, "pair", "new", **still),
        ]
    )
    assert failures == {}
    layers = {name: tensor for name, tensor in before["pair"].adapter.tensors.items() if name.startswith("layers.")}
    assert layers
    for name, tensor in layers.items():
        torch.testing.assert_close(after["value"].adapter.tensors[name], tensor, rtol=0, atol=1e-6)
    assert any((after["new"].adapter.tensors[name] - tensor).abs().max() > 1e-3 for name, tensor in layers.items())


def test_bfloat16_trains_beside_and_exports_float32(task_folder, backbone_folder) -> None:
    tasks = [task(task_folder, backbone_folder, kind, dtype="bfloat16", epochs=1) for kind in ("single", "value")]
    trained, _ = train(tasks)
    assert {str(t.dtype) for found in trained.values() for t in found.adapter.tensors.values()} == {"torch.float32"}


def test_an_adapter_that_fails_is_named_and_the_others_are_there(task_folder, backbone_folder, monkeypatch) -> None:
    step = Lane.step
    monkeypatch.setattr(
        Lane, "step", lambda of, loss: step(of, loss * float("nan") if of.name == "pair" and of.steps == 2 else loss)
    )
    trained, failures = train([task(task_folder, backbone_folder, kind) for kind in ("single", "pair")])
    assert failures == {"pair": "the loss became nan in step 3 of 12"}
    assert set(trained) == {"single"}


@pytest.mark.parametrize(("key", "value"), [("backbone", "default"), ("dtype", "bfloat16"), ("encoder_dropout", 0.2)])
def test_settings_of_the_encoder_have_one_value_for_all(key, value, task_folder, backbone_folder) -> None:
    tasks = [task(task_folder, backbone_folder, "single"), task(task_folder, backbone_folder, "pair", **{key: value})]
    for work in (train, probe_together):
        with pytest.raises(ConfigError, match=f"{key}: expected one value for all.*'single' and .*'pair'"):
            work(tasks)


def test_two_of_one_name_are_refused(task_folder, backbone_folder) -> None:
    tasks = [task(task_folder, backbone_folder, kind, "same") for kind in ("single", "pair")]
    with pytest.raises(ConfigError, match="several of 'same'"):
        train(tasks)


def test_unfit_golden_texts_are_refused_before_any_training(task_folder, backbone_folder, monkeypatch) -> None:
    monkeypatch.setattr(run, "SideBySide", None)
    good = task(task_folder, backbone_folder, "single")
    bad = Task(good.recipe, good.data, good.metric, [("the", "word")])
    with pytest.raises(DataError, match="expected single texts"):
        train([bad])


def test_nothing_to_train_is_nothing() -> None:
    assert train([]) == ({}, {})
    assert probe_together([]) == {}


def test_probes_of_many_tasks_are_those_of_each(task_folder, backbone_folder, tmp_path, monkeypatch) -> None:
    tasks = [task(task_folder, backbone_folder, kind) for kind in KINDS]
    tasks.append(task(task_folder, backbone_folder, "single", "cls", pooling="cls"))
    tasks.append(task(task_folder, backbone_folder, "single", "again"))
    texts: list[int] = []
    pooled = run.pooled_features
    monkeypatch.setattr(run, "pooled_features", lambda b, r, t: (texts.append(len(t)), pooled(b, r, t))[1])
    found = probe_together(tasks)
    for one in tasks:
        name, alone = one.recipe.name, linear_probe(one.recipe, one.data, one.metric, tmp_path / one.recipe.name)
        assert found[name]["scores"] == pytest.approx(alone["scores"], abs=0.04)  # a row may fall on the other side
    assert found["again"] == found["single"]
    rows = {
        one.recipe.name: {(row.text, row.text_pair) for row in (*one.data.train, *one.data.validation)} for one in tasks
    }
    assert texts == [len(rows["single"]), len(set().union(*rows.values()))]  # of "cls", then of all others
