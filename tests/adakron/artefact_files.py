"""Artefacts of a tiny backbone, and files that nothing of ours has checked."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from adakron import Adapter, AdapterConfig, Backbone, Example
from adakron.artefact import (
    expected_shapes,
)
from adakron.errors import (
    FormatError,
)
from tests.tiny import tiny_adapter, tiny_backbone, tiny_config

GOLDEN = (Example("the people found a new place", None, (0.25, -1.5)), Example("naïve 好 🙂", None, (0.0, 3e-8)))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def backbone() -> Backbone:
    return tiny_backbone()


def config(**changes: Any) -> AdapterConfig:
    return tiny_config(backbone(), **changes)


def adapter(**changes: Any) -> Adapter:
    return tiny_adapter(backbone(), **changes)


@cache
def golden_adapter() -> Adapter:
    return adapter(expected=GOLDEN)


def zeros(shape_of: AdapterConfig) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in expected_shapes(shape_of).items()}


def by_hand(
    tensors: Mapping[str, Tensor], settings: AdapterConfig | None = None, drop: tuple[str, ...] = (), **metadata: str
) -> bytes:
    """A file as the library writes it, so that nothing of ours has checked it; `metadata` replaces ours."""
    known = {
        "format": "pt",
        "adakron.format_version": "1",
        "adakron.config": json.dumps((settings or config()).to_dict()),
    }
    known |= {name.replace("__", "."): value for name, value in metadata.items()}
    return save(dict(tensors), metadata={name: value for name, value in known.items() if name not in drop})


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        Adapter.from_bytes(data)
    assert str(caught.value).isprintable()
    return caught.value
