"""Labelled rows held against an adapter: whether they fit it, and their labels in its own order."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron.config import AdapterConfig
from adakron.errors import DataError
from adakron.training.data import TaskData


def require_fit(data: TaskData, config: AdapterConfig, source: str) -> None:
    """Raises DataError where the data, called `source`, has labels that the adapter lacks, or other texts."""
    if unknown := set(data.label_names) - set(config.label_names):
        raise DataError(f"{source}: the label {min(unknown)!r} is none of the adapter's {config.num_labels}")
    if data.takes_pair != config.takes_pair:
        raise DataError(f"{source}: the adapter takes {' and '.join(config.text_fields)}, the data differs")


def targets_of(data: TaskData, config: AdapterConfig) -> NDArray[Any]:
    """Labels of the validation rows, by the adapter's index: [N] class ids, [N, L] of 0 and 1, or [N] values."""
    ordered = replace(data, label_names=config.label_names)
    return np.array([ordered.target(row) for row in data.validation])
