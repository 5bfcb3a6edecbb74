import argparse
from collections.abc import Iterator

import pytest
import torch

from adakron import cli
from adakron.training import precision
from adakron.training.precision import faster_precision


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    faster_precision.cache_clear()
    yield
    faster_precision.cache_clear()


@pytest.mark.parametrize(("faster", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_train_takes_the_faster_format_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, faster: torch.dtype, name: str
) -> None:
    monkeypatch.setattr(precision, "choose_dtype", lambda wanted, device: faster)
    parsed = argparse.Namespace(like=None, about=None, data="weather")
    assert cli._recipe(parsed)[0].dtype == name
    parsed.recipe_dtype = "bfloat16"
    assert cli._recipe(parsed)[0].dtype == "bfloat16"


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters trained side by side share one format: a second measurement may differ."""
    answers = iter([torch.float32, torch.bfloat16])
    monkeypatch.setattr(precision, "choose_dtype", lambda wanted, device: next(answers))
    assert [faster_precision(), faster_precision()] == ["float32", "float32"]
