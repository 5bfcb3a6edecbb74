import math

import pytest
import torch

from adakron.attachment import detach
from adakron.training.classifier import encode, pad
from adakron.training.data import TaskData, load_task
from adakron.training.loop import Schedule, fit, texts_of
from adakron.training.run import new_adapter
from adakron.training.together.lane import Lane
from adakron.training.together.loop import Portion, passes
from tests.adakron.training.together.lanes import assert_same, lane, recipe, side_by_side, weights
from tests.tiny import tiny_backbone

KINDS = ("single", "pair", "value", "multi")
SETTINGS = {
    "single": {},
    "pair": {"bottleneck": 24, "lr": 1e-2, "batch": 12, "head": "roberta"},
    "value": {"pooling": "cls", "weight_decay": 0.1, "schedule": "linear"},
    "multi": {"method": "adakron", "seed": 5, "epochs": 1},
}


def tasks(task_folder) -> dict[str, TaskData]:
    return {kind: load_task(str(task_folder(kind)), max_rows=48) for kind in KINDS}


def lanes_of(backbone, data: dict[str, TaskData], **changes) -> list[Lane]:
    return [lane(backbone, recipe(kind, **(SETTINGS[kind] | changes)), rows) for kind, rows in data.items()]


def portion(of: Lane, rows: slice = slice(0, 6)) -> Portion:
    return Portion(of, of.train.encoded[rows], torch.tensor(of.train.targets[rows]))


@pytest.mark.parametrize("first_layer", [0, 2])
def test_gradients_side_by_side_are_those_of_each_adapter_alone(first_layer, task_folder, monkeypatch) -> None:
    data, backbone = tasks(task_folder), tiny_backbone()
    training, gradients = side_by_side(backbone), {}
    monkeypatch.setattr(
        Lane, "step", lambda of, loss: gradients.update({of.name: [p.grad.clone() for p in of._parameters]})
    )
    training.step([portion(one) for one in lanes_of(backbone, data, first_layer=first_layer)])
    for kind, rows in data.items():
        settings, other = recipe(kind, **(SETTINGS[kind] | {"first_layer": first_layer})), tiny_backbone()
        model = new_adapter(other, settings, rows)
        batch = pad(encode(other, texts_of(rows.train[:6]), 24), other)
        targets = torch.tensor([rows.target(row) for row in rows.train[:6]])
        model(**batch, labels=targets)["loss"].backward()
        detach(other.model)
        assert_same(gradients[kind], [p.grad for p in model.parameters() if p.requires_grad], atol=1e-6)
        assert max(float(gradient.abs().max()) for gradient in gradients[kind]) > 1e-3


@pytest.mark.parametrize("first_layer", [0, 1])
def test_a_whole_training_side_by_side_is_that_of_each_adapter_alone(first_layer, task_folder) -> None:
    data, backbone = tasks(task_folder), tiny_backbone()
    together = lanes_of(backbone, data, first_layer=first_layer)
    side_by_side(backbone).run(together)
    for kind, beside in zip(KINDS, together, strict=True):
        other = tiny_backbone()
        (alone,) = lanes_of(other, {kind: data[kind]}, first_layer=first_layer)
        before = weights(alone.model)
        side_by_side(other, pass_tokens=1, cache_bytes=0).run([alone])
        assert_same(weights(beside.model), weights(alone.model), atol=2e-4)
        moved = max(float((a - b).abs().max()) for a, b in zip(before, weights(alone.model), strict=True))
        assert moved > 0.02
        assert beside.outcome.best_epoch == alone.outcome.best_epoch


@pytest.mark.parametrize(("kind", "decay"), [("single", 1.0), ("value", 1.0), ("single", 0.3)])
def test_a_lane_takes_the_steps_that_the_trainer_takes(kind, decay, task_folder) -> None:
    data, backbone = load_task(str(task_folder(kind)), max_rows=48), tiny_backbone()
    settings = recipe(
        kind, batch=48, epochs=4, weight_decay=0.1, warmup=0.3, layer_decay=decay
    )  # whole epochs: any order is the same
    ours = lane(backbone, settings, data)
    side_by_side(backbone).run([ours])
    ours.restore_best()
    other = tiny_backbone()
    model = new_adapter(other, settings, data)
    outcome = fit(model, other, data, settings, Schedule(settings.lr, settings.epochs, 0.1), ours.metric)
    assert_same(weights(ours.model), weights(model), atol=2e-4)
    assert (outcome.epochs, outcome.best_epoch) == (ours.outcome.epochs, ours.outcome.best_epoch)


def test_nan_in_one_adapter_ends_it_alone_and_says_where(task_folder) -> None:
    data = tasks(task_folder)

    def run(broken: bool) -> tuple[list[Lane], list[str]]:
        backbone = tiny_backbone()
        lanes = lanes_of(backbone, data)
        if broken:
            with torch.no_grad():
                lanes[1].adapters[0].up.bias[3] = math.nan
        training = side_by_side(backbone)
        training.run(lanes)
        return lanes, training.ended

    (sound, _), (lanes, ended) = run(broken=False), run(broken=True)
    assert lanes[1].failure == "the loss became nan in step 1 of 8"
    assert [one.failure for one in (lanes[0], *lanes[2:])] == [None] * 3
    assert sorted(ended) == sorted(KINDS)
    for place in (0, 2, 3):
        assert_same(weights(lanes[place].model), weights(sound[place].model), atol=2e-4)


def test_a_gradient_that_is_not_finite_ends_an_adapter_before_its_weights_are_lost(task_folder, monkeypatch) -> None:
    backbone = tiny_backbone()
    one = lane(backbone, recipe("single"), load_task(str(task_folder("single"))))
    before = weights(one.model)
    one.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    side_by_side(backbone).run([one])
    assert one.failure == "the gradient is not finite in step 1 of 12"
    assert_same(weights(one.model), before, atol=0)


def test_an_adapter_that_stops_early_leaves_the_others_to_go_on(task_folder, monkeypatch) -> None:
    scores = {"single": iter([0.5, 0.4]), "pair": iter([0.1, 0.2, 0.3])}
    monkeypatch.setattr(
        "adakron.training.together.lane.score",
        lambda logits, labels, kind, names: {"accuracy": next(scores["single" if "warm" in names else "pair"])},
    )
    backbone, data = tiny_backbone(), tasks(task_folder)
    lanes = lanes_of(backbone, {kind: data[kind] for kind in ("single", "pair")}, epochs=3, patience=1)
    training = side_by_side(backbone)
    training.run(lanes)
    assert training.ended == ["single", "pair"]
    assert [one.outcome.epochs for one in lanes] == [2, 3]
    assert [one.outcome.best_epoch for one in lanes] == [1, 3]


def test_an_epoch_is_evaluated_as_often_as_the_recipe_says(task_folder) -> None:
    backbone = tiny_backbone()
    training = side_by_side(backbone)
    one = lane(backbone, recipe("w", evaluations=3, batch=12), load_task(str(task_folder("single"))))
    training.run([one])
    assert [text.split(":")[0].removeprefix("w epoch ") for text in training.said] == [
        *("0.38", "0.62", "1"),
        *("1.38", "1.62", "2"),
    ]


def test_hidden_states_below_the_first_layer_are_computed_once_a_row(task_folder) -> None:
    backbone, data = tiny_backbone(), load_task(str(task_folder("single")))
    lanes = [lane(backbone, recipe(f"seed-{seed}", first_layer=2, seed=seed), data) for seed in (1, 2)]
    training = side_by_side(backbone)
    training.run(lanes)
    distinct = {row.text for row in (*data.train, *data.validation)}
    assert training._states.computed_rows <= len(distinct)


def test_batches_hold_rows_of_like_length_and_one_first_layer_within_the_budget(task_folder) -> None:
    backbone, data = tiny_backbone(), load_task(str(task_folder("single")))
    low, high = (lane(backbone, recipe("x", first_layer=layer), data) for layer in (0, 1))

    def rows(of: Lane, count: int, tokens: int) -> Portion:
        return Portion(of, [{"input_ids": [1] * tokens}] * count, torch.zeros(count))

    portions = [rows(low, 4, 9), rows(low, 4, 5), rows(high, 4, 5), rows(low, 30, 6), rows(low, 4, 6)]
    shared = [[(len(p.rows), p.longest) for p in together] for together in passes(portions, 50)]
    assert shared == [[(4, 5)], [(30, 6)], [(4, 6)], [(4, 9)], [(4, 5)]]
    assert [len(together) for together in passes(portions, 10_000)] == [4, 1]
