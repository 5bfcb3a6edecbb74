"""Scores of a finished adapter on labelled text, run through the engine that serves it."""

from pathlib import Path
from typing import Any

import numpy as np

from adakron.artefact import Adapter
from adakron.engine import Device
from adakron.precision import Dtype
from adakron.training.inference import engine_for, logits_of
from adakron.training.labels import require_fit, targets_of
from adakron.training.metrics import score
from adakron.training.task_file import load_data


def evaluate(path: Path, source: str, backbone: str | None, device: Device, dtype: Dtype) -> dict[str, Any]:
    """Every metric that applies, on the validation rows of `source`, with device, dtype and number of rows.

    Raises DataError for data that does not fit the adapter, FormatError, BackboneError, BaseMismatchError.
    """
    adapter = Adapter.from_folder(path) if path.is_dir() else Adapter.from_file(path)
    config = adapter.config
    data = load_data(source, problem_type=config.problem_type)
    require_fit(data, config, source)
    engine = engine_for(config, backbone, device, dtype)
    logits = logits_of(engine, adapter, data.validation)
    scores = score(
        logits / np.float32(config.calibration.temperature),  # the multi-label threshold is one of scores
        targets_of(data, config),
        config.problem_type,
        config.label_names,
        config.multi_label_threshold,
    )
    info = engine.info()
    return {"rows": len(logits), "device": info.device, "dtype": info.dtype, "scores": scores}
