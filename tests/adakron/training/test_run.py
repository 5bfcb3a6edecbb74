import json

import numpy as np
import pytest
import torch

from adakron import Adapter, Engine
from adakron.backbone import Backbone
from adakron.errors import ConfigError, DataError
from adakron.training import run
from adakron.training.classifier import adapter_tensors
from adakron.training.data import load_task
from adakron.training.loop import KeepBest
from adakron.training.recipe import Recipe
from adakron.training.run import full_fine_tuning, linear_probe, new_adapter, train_adapter

METRICS = {"single": "accuracy", "multi": "macro_f1", "pair": "accuracy", "value": "pearson"}


def recipe_for(backbone_folder, **changes) -> Recipe:
    plain = {"bottleneck": 12, "max_length": 24, "lr": 2e-2, "epochs": 4, "batch": 16, "dtype": "float32"}
    return Recipe(**({"name": "demo", "backbone": str(backbone_folder)} | plain | changes))


@pytest.mark.parametrize("kind", list(METRICS))
def test_every_kind_of_task_is_learnt(kind: str, backbone_folder, task_folder) -> None:
    trained = train_adapter(
        recipe_for(backbone_folder, epochs=16, patience=8), load_task(str(task_folder(kind))), METRICS[kind]
    )
    assert trained.scores[METRICS[kind]] > 0.8
    assert trained.adapter.config.takes_pair == (kind == "pair")


@pytest.mark.parametrize("kind", list(METRICS))
def test_the_engine_reproduces_the_golden_examples(kind: str, backbone_folder, task_folder) -> None:
    recipe = recipe_for(backbone_folder, epochs=1)
    trained = train_adapter(recipe, load_task(str(task_folder(kind))), METRICS[kind])
    engine = Engine.load(str(backbone_folder), device="cpu", dtype="float32")
    assert engine.check(trained.adapter).examples == 3


def test_the_artefact_survives_its_own_bytes(backbone_folder, task_folder) -> None:
    adapter = train_adapter(
        recipe_for(backbone_folder, epochs=1), load_task(str(task_folder("single"))), "accuracy"
    ).adapter
    assert Adapter.from_bytes(adapter.to_bytes()).sha256 == adapter.sha256
    assert adapter.config.label_distribution is not None
    assert sum(adapter.config.label_distribution) == pytest.approx(1)


def test_one_seed_gives_one_artefact_and_another_seed_another(backbone_folder, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    shas = [
        train_adapter(recipe_for(backbone_folder, epochs=2, seed=seed), data, "accuracy").adapter.sha256
        for seed in (1, 1, 2)
    ]
    assert shas[0] == shas[1]
    assert shas[0] != shas[2]


@pytest.fixture
def trained_folder(backbone_folder, task_folder, tmp_path):
    adapter = train_adapter(
        recipe_for(backbone_folder, first_layer=1), load_task(str(task_folder("single"))), "accuracy"
    ).adapter
    adapter.write(tmp_path / "trained")
    return tmp_path / "trained"


def test_training_may_start_from_another_adapter_s_layers(trained_folder, backbone_folder, task_folder) -> None:
    before, data = Adapter.from_folder(trained_folder), load_task(str(task_folder("multi")))
    recipe = recipe_for(backbone_folder, first_layer=1, start_from=str(trained_folder))
    model = new_adapter(Backbone.load(str(backbone_folder)), recipe, data)
    begun = adapter_tensors(model, first_layer=1)
    layers = [name for name in before.tensors if name.startswith("layers.")]
    assert layers
    for name in layers:
        torch.testing.assert_close(begun[name], before.tensors[name].float(), rtol=0, atol=0)
    assert begun["head.weight"].shape != before.tensors["head.weight"].shape  # the other task has other labels
    after = train_adapter(recipe, data, "macro_f1").adapter
    assert any(not torch.equal(after.tensors[name], before.tensors[name]) for name in layers)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bottleneck": 24}, "bottleneck 24, factor 4, order a2_a1, first layer 1; .* has bottleneck 12"),
        ({"factor": 3}, "factor 3, .* has bottleneck 12, factor 4"),
        ({"first_layer": 0}, "first layer 0; .* first layer 1"),
        ({"backbone": "random:tiny"}, "backbone random:tiny; .* was trained on .* with other weights"),
    ],
)
def test_start_that_does_not_fit_is_refused(changes, says: str, trained_folder, backbone_folder, task_folder) -> None:
    recipe = recipe_for(backbone_folder, **({"first_layer": 1, "start_from": str(trained_folder)} | changes))
    with pytest.raises(ConfigError, match=says):
        train_adapter(recipe, load_task(str(task_folder("single"))), "accuracy")


def test_start_that_is_no_adapter_is_refused(backbone_folder, task_folder, tmp_path) -> None:
    recipe = recipe_for(backbone_folder, start_from=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"start_from: .*nothing: cannot read 'adapter_model.safetensors'"):
        train_adapter(recipe, load_task(str(task_folder("single"))), "accuracy")


@pytest.mark.parametrize("method", ["madakron-partial", "madakron-full"])
def test_experts_export_as_a_plain_adapter(method: str, backbone_folder, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    plain = train_adapter(recipe_for(backbone_folder, epochs=1), data, "accuracy").adapter
    experts = train_adapter(recipe_for(backbone_folder, epochs=1, method=method), data, "accuracy").adapter
    assert {n: t.shape for n, t in experts.tensors.items()} == {n: t.shape for n, t in plain.tensors.items()}


def test_training_in_bfloat16_still_exports_and_scores_in_float32(backbone_folder, task_folder) -> None:
    data = load_task(str(task_folder("single")))
    trained = train_adapter(recipe_for(backbone_folder, dtype="bfloat16"), data, "accuracy")
    assert {tensor.dtype for tensor in trained.adapter.tensors.values()} == {torch.float32}
    Engine.load(str(backbone_folder), device="cpu", dtype="float32").check(trained.adapter)


def test_training_stops_when_the_score_no_longer_rises(backbone_folder, task_folder, monkeypatch) -> None:
    fake = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    monkeypatch.setattr("adakron.training.loop.score", lambda *_: {"accuracy": next(fake)})
    data = load_task(str(task_folder("single")))
    outcome = train_adapter(recipe_for(backbone_folder, epochs=5, patience=2), data, "accuracy").outcome
    assert (outcome.epochs, outcome.best_epoch, outcome.best_score) == (4, 2, 0.7)


def test_the_best_epoch_s_weights_are_exported(backbone_folder, task_folder, monkeypatch) -> None:
    data = load_task(str(task_folder("single")))
    one = train_adapter(recipe_for(backbone_folder, epochs=3, schedule="linear"), data, "accuracy")
    kept: list[dict] = []
    fake = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr("adakron.training.loop.score", lambda *_: {"accuracy": next(fake)})
    original = KeepBest.on_evaluate

    def watch(self, *args, **kwargs) -> None:
        kept.append(self.model.trainable())
        original(self, *args, **kwargs)

    monkeypatch.setattr(KeepBest, "on_evaluate", watch)
    first = train_adapter(recipe_for(backbone_folder, epochs=3, schedule="linear"), data, "accuracy").adapter
    torch.testing.assert_close(first.tensors["head.weight"], kept[0]["head.weight"], rtol=0, atol=0)
    assert not torch.equal(first.tensors["head.weight"], kept[2]["head.weight"])
    assert one.adapter.config == first.config


def test_given_texts_become_the_golden_examples(backbone_folder, task_folder) -> None:
    recipe, data = recipe_for(backbone_folder, epochs=1), load_task(str(task_folder("single")))
    adapter = train_adapter(recipe, data, "accuracy", ["the good word", "down"]).adapter
    assert [(example.text, example.text_pair) for example in adapter.expected] == [
        ("the good word", None),
        ("down", None),
    ]
    assert not np.allclose(adapter.expected[0].logits, adapter.expected[1].logits)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "expected 1 to 8; found 0"),
        (["the"] * 9, "expected 1 to 8; found 9"),
        ([("the", "word")], "expected single texts"),
        (["word " * 31], "expected at most 32 tokens"),
    ],
)
def test_unfit_golden_texts_are_refused_before_training(
    texts, message, backbone_folder, task_folder, monkeypatch
) -> None:
    monkeypatch.setattr(run, "fit", None)
    with pytest.raises(DataError, match=message):
        train_adapter(recipe_for(backbone_folder), load_task(str(task_folder("single"))), "accuracy", texts)


def test_a_max_length_beyond_the_backbone_is_refused(backbone_folder, task_folder) -> None:
    with pytest.raises(ConfigError, match="max_length: expected at most 44"):
        train_adapter(recipe_for(backbone_folder, max_length=45), load_task(str(task_folder("single"))), "accuracy")


@pytest.mark.parametrize("kind", list(METRICS))
def test_the_linear_probe_beats_chance(kind: str, backbone_folder, task_folder, tmp_path) -> None:
    found = linear_probe(recipe_for(backbone_folder), load_task(str(task_folder(kind))), METRICS[kind], tmp_path)
    assert found["scores"][METRICS[kind]] > 0.6


def test_a_finished_baseline_is_read_and_not_run_again(backbone_folder, task_folder, tmp_path, monkeypatch) -> None:
    recipe, data = recipe_for(backbone_folder, full_lr=1e-3, full_epochs=2), load_task(str(task_folder("single")))
    found = full_fine_tuning(recipe, data, "accuracy", tmp_path)
    assert (found["epochs"], found["lr"]) == (2, 1e-3)
    monkeypatch.setattr(run, "fit", None)
    assert full_fine_tuning(recipe, data, "accuracy", tmp_path) == found
    assert (
        full_fine_tuning(recipe_for(backbone_folder, full_lr=1e-3, full_epochs=2, lr=1e-4), data, "accuracy", tmp_path)
        == found
    )


def test_a_baseline_of_other_settings_is_run_again(backbone_folder, task_folder, tmp_path) -> None:
    data = load_task(str(task_folder("single")))
    recipe = recipe_for(backbone_folder)
    linear_probe(recipe, data, "accuracy", tmp_path)
    key = json.loads((tmp_path / "probe.json").read_text())["key"]
    linear_probe(recipe_for(backbone_folder, pooling="cls"), data, "accuracy", tmp_path)
    assert json.loads((tmp_path / "probe.json").read_text())["key"] != key


def test_a_damaged_baseline_file_is_run_again(backbone_folder, task_folder, tmp_path) -> None:
    (tmp_path / "probe.json").write_text("{")
    assert linear_probe(recipe_for(backbone_folder), load_task(str(task_folder("single"))), "accuracy", tmp_path)[
        "scores"
    ]


def test_an_epoch_is_evaluated_as_often_as_the_recipe_says(backbone_folder, task_folder, capsys) -> None:
    recipe = recipe_for(backbone_folder, epochs=2, evaluations=3, batch=12)
    outcome = train_adapter(recipe, load_task(str(task_folder("single"))), "accuracy").outcome
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["epoch 0.38", "epoch 0.62", "epoch 1", "epoch 1.38", "epoch 1.62", "epoch 2"]
    assert outcome.epochs == 2


def test_a_value_starts_at_the_mean_of_the_training_values(backbone_folder, task_folder, monkeypatch) -> None:
    class StopError(Exception):
        pass

    def stop(model, *_: object) -> None:
        raise StopError(model.head.bias.item())

    monkeypatch.setattr(run, "fit", stop)
    data = load_task(str(task_folder("value")))
    with pytest.raises(StopError) as caught:
        train_adapter(recipe_for(backbone_folder), data, "pearson")
    assert caught.value.args[0] == pytest.approx(sum(row.label for row in data.train) / len(data.train))
