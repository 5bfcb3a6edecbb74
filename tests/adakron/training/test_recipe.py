import json

import pytest

from adakron.errors import ConfigError
from adakron.training.recipe import Recipe


def test_a_recipe_survives_json() -> None:
    recipe = Recipe("demo", train_splits=("train", "more"), lr=3e-4, metric="matthews", max_rows=500)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("method", "lora"),
        ("head", "deep"),
        ("pooling", "max"),
        ("schedule", "constant"),
        ("start", "closed"),
        ("dtype", "float16"),
        ("problem_type", "ranking"),
        ("metric", "bleu"),
        ("epochs", 0),
        ("batch", True),
        ("experts", 1),
        ("patience", 0),
        ("max_length", 3),
        ("max_rows", 1),
        ("lr", 0.0),
        ("full_lr", 1.5),
        ("warmup", 1.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("dropout", -0.1),
        ("encoder_dropout", 1.0),
        ("abstain_below", 0.0),
        ("abstain_below", 1.0),
        ("train_splits", ()),
        ("bottleneck", 50),
    ],
)
def test_a_bad_setting_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**({"name": "demo"} | {key: value}))
    assert key in str(caught.value)


def test_experts_cannot_start_from_a_trained_adapter() -> None:
    with pytest.raises(ConfigError, match="method: expected adakron"):
        Recipe("demo", method="madakron-full", start_from="runs/other")


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        Recipe.from_dict({"name": "demo", "learning_rate": 1e-3})
