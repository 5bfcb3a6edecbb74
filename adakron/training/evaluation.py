"""Scores of a finished adapter on labelled text, run through the engine that serves it."""

from pathlib import Path
from typing import Any

import numpy as np

from adakron.artefact import Adapter
from adakron.backbone import DEFAULT, DEFAULT_NAME
from adakron.engine import Device, Engine
from adakron.errors import DataError
from adakron.precision import Dtype
from adakron.rows import Row, RowError
from adakron.training.data import load_task
from adakron.training.metrics import score


def evaluate(path: Path, source: str, backbone: str | None, device: Device, dtype: Dtype) -> dict[str, Any]:
    """Every metric that applies, on the validation rows of `source`, with device, dtype and number of rows.

    Raises DataError for data that does not fit the adapter, FormatError, BackboneError, BaseMismatchError.
    """
    adapter = Adapter.from_folder(path) if path.is_dir() else Adapter.from_file(path)
    config = adapter.config
    data = load_task(source, problem_type=config.problem_type)
    if unknown := set(data.label_names) - set(config.label_names):
        raise DataError(f"{source}: the label {min(unknown)!r} is none of the adapter's {config.num_labels}")
    if data.takes_pair != config.takes_pair:
        raise DataError(f"{source}: the adapter takes {' and '.join(config.text_fields)}, the data differs")
    named = DEFAULT if config.base_model_name_or_path == DEFAULT_NAME else config.base_model_name_or_path
    engine = Engine.load(backbone or named, device=device, dtype=dtype)
    engine.add("adapter", adapter)
    logits = []
    answers = engine.classify([Row("adapter", row.text, row.text_pair) for row in data.validation])
    for row, answer in zip(data.validation, answers, strict=True):
        if isinstance(answer, RowError):
            raise DataError(f"{row.where}: {answer.message}", hint=answer.hint)
        logits.append(answer.logits)
    renamed = type(data)(data.problem_type, config.label_names, data.train, data.validation, data.held_out)
    labels = np.array([renamed.target(row) for row in data.validation])
    scores = score(np.stack(logits), labels, config.problem_type, config.label_names, config.multi_label_threshold)
    info = engine.info()
    return {"rows": len(logits), "device": info.device, "dtype": info.dtype, "scores": scores}
