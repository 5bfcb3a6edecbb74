"""Labelled rows through the engine that serves, for what is measured of finished adapters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adakron.artefact import Adapter
from adakron.backbone import DEFAULT, DEFAULT_NAME
from adakron.config import AdapterConfig
from adakron.engine import Device, Engine
from adakron.errors import DataError
from adakron.precision import Dtype
from adakron.rows import Row, RowError
from adakron.training.data import LabelledRow


def engine_for(config: AdapterConfig, backbone: str | None, device: Device, dtype: Dtype) -> Engine:
    """An engine on `backbone`, or, where that is None, on the one that the adapter names. Raises BackboneError."""
    named = DEFAULT if config.base_model_name_or_path == DEFAULT_NAME else config.base_model_name_or_path
    return Engine.load(backbone or named, device=device, dtype=dtype)


def logits_of(engine: Engine, adapter: Adapter, rows: Sequence[LabelledRow]) -> NDArray[np.float32]:
    """Logits [N, L] of the rows, in their order. The engine does not keep the adapter.

    Raises DataError with file and line for a row that the engine refuses, BaseMismatchError for another backbone.
    """
    engine.add(adapter.sha256, adapter)
    try:
        answers = engine.classify([Row(adapter.sha256, row.text, row.text_pair) for row in rows])
    finally:
        engine.remove(adapter.sha256)
    found = []
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, RowError):
            raise DataError(f"{row.where}: {answer.message}", hint=answer.hint)
        found.append(answer.logits)
    return np.stack(found)
