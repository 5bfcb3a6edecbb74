"""Lanes on one tiny backbone, and their training in this process."""

from collections.abc import Sequence

import torch

from adakron.attachment import detach
from adakron.backbone import Backbone
from adakron.training.classifier import Classifier, encode
from adakron.training.data import TaskData
from adakron.training.loop import texts_of
from adakron.training.recipe import Recipe
from adakron.training.run import new_adapter
from adakron.training.together.encoder import SharedEncoder
from adakron.training.together.features import HiddenStates
from adakron.training.together.lane import Lane, Rows
from adakron.training.together.loop import SideBySide

METRICS = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "macro_f1",
    "regression": "pearson",
}


def recipe(name: str, **changes) -> Recipe:
    """Without dropout, so that nothing but the rows decides."""
    plain = {"bottleneck": 12, "max_length": 24, "lr": 2e-2, "epochs": 2, "batch": 16, "dtype": "float32"}
    return Recipe(name, **(plain | {"dropout": 0.0, "encoder_dropout": 0.0} | changes))


def lane(backbone: Backbone, settings: Recipe, data: TaskData) -> Lane:
    """As `train_together` starts one."""
    model = new_adapter(backbone, settings, data)
    detach(backbone.model)
    train, validation = (
        Rows(encode(backbone, texts_of(rows), settings.max_length), [data.target(row) for row in rows])
        for rows in (data.train, data.validation)
    )
    return Lane(model, data, settings, METRICS[data.problem_type], train, validation)


def side_by_side(backbone: Backbone, pass_tokens: int = 10_000, cache_bytes: int = 1 << 20) -> SideBySide:
    """With `ended` and `said`, what it told."""
    encoder = SharedEncoder(backbone.model)
    ended: list[str] = []
    said: list[str] = []
    training = SideBySide(
        backbone,
        encoder,
        HiddenStates(backbone, encoder, cache_bytes),
        pass_tokens,
        on_step=lambda lane: None,
        on_score=said.append,
        on_end=lambda lane: ended.append(lane.name),
    )
    training.ended, training.said, training.encoder = ended, said, encoder
    return training


def weights(model: Classifier) -> list[torch.Tensor]:
    """Copies of what is trained."""
    return [tensor.clone() for tensor in model.trainable().values()]


def assert_same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], atol: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)
