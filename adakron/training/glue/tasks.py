"""The eight tasks of GLUE that the paper reports: where their rows are, and which score counts.

Knows names of columns and splits; nothing of methods or results.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adakron.config import ProblemType
from adakron.errors import DataError
from adakron.training.data import TaskData, load_task, read_meta

HUB = "nyu-mll/glue"
DATA_SEED = 13


@dataclass(frozen=True, slots=True)
class GlueTask:
    """One task.

    title       as the paper's table has it
    columns     of the hub's data set: its text columns, one or two
    labels      in index order, F1 being of the second; None for a value
    metric      the one that counts for the average; also: others that are usually given
    validation  split of the hub's data set
    full_rows   rows of the official training set
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metric: str
    full_rows: int
    also: tuple[str, ...] = ()
    validation: str = "validation"


_ENTAILMENT = ("entailment", "not_entailment")
TASKS: Mapping[str, GlueTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            GlueTask(
                "mnli",
                "MNLI",
                ("premise", "hypothesis"),
                ("entailment", "neutral", "contradiction"),
                "accuracy",
                392_702,
                validation="validation_matched",
            ),
            GlueTask("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, "accuracy", 104_743),
            GlueTask("sst2", "SST-2", ("sentence",), ("negative", "positive"), "accuracy", 67_349),
            GlueTask(
                "qqp",
                "QQP",
                ("question1", "question2"),
                ("not_duplicate", "duplicate"),
                "f1",
                363_846,
                also=("accuracy",),
            ),
            GlueTask(
                "mrpc",
                "MRPC",
                ("sentence1", "sentence2"),
                ("not_equivalent", "equivalent"),
                "f1",
                3_668,
                also=("accuracy",),
            ),
            GlueTask("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), "matthews", 8_551),
            GlueTask("rte", "RTE", ("sentence1", "sentence2"), _ENTAILMENT, "accuracy", 2_490),
            GlueTask("stsb", "STS-B", ("sentence1", "sentence2"), None, "pearson", 5_749, also=("spearman",)),
        )
    }
)
"""By name, in the order of the paper's table."""


@dataclass(frozen=True, slots=True)
class GlueData:
    """A task's rows. note: what of them is not the official data, in words; None where all is."""

    data: TaskData
    note: str | None


def task_named(name: str) -> GlueTask:
    """Raises DataError with the known names."""
    if name not in TASKS:
        raise DataError(f"tasks: no GLUE task {name!r}", hint=f"known: {', '.join(TASKS)}")
    return TASKS[name]


def load_glue(task: GlueTask, source: str | None, max_rows: int | None, max_validation: int | None = None) -> GlueData:
    """The rows of a task: from the folder `source`/`task.name`, or from the hub where source is None.

    max_rows        of the training rows, the same random choice for every run; None: all
    max_validation  of the validation rows, likewise

    Raises DataError where there is no such folder, and as `load_task` does.
    """
    kind: ProblemType = "regression" if task.labels is None else "single_label_classification"
    if source is None:
        fields = dict(zip(task.columns, ("text", "text_pair"), strict=False))
        data = load_task(
            f"{HUB}:{task.name}",
            validation_split=task.validation,
            columns=fields,
            label_names=task.labels,
            skip_blank=True,  # QQP has a few
            problem_type=kind,
            max_rows=max_rows,
            seed=DATA_SEED,
        )
        return _limited(data, None, max_validation)
    folder = Path(source).expanduser() / task.name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", hint="name a folder with one folder a task, or leave --data out")
    meta = read_meta(folder)
    splits = meta.get("splits")
    train_splits = [name for name in splits if name.startswith("train")] if isinstance(splits, dict) else ["train"]
    data = load_task(
        str(folder),
        train_splits=train_splits,
        label_names=task.labels,
        problem_type=kind,
        max_rows=max_rows,
        seed=DATA_SEED,
    )
    return _limited(data, _note(meta, task), max_validation)


def _limited(data: TaskData, note: str | None, most: int | None) -> GlueData:
    """The data with at most so many validation rows, and the note saying so."""
    if most is None or most >= len(data.validation):
        return GlueData(data, note)
    said = f"{most:,} of {len(data.validation):,} validation rows"
    rows = tuple(random.Random(DATA_SEED).sample(data.validation, most))
    return GlueData(replace(data, validation=rows), f"{note}; {said}" if note else said)


def _note(meta: Mapping[str, Any], task: GlueTask) -> str | None:
    notes = []
    if meta.get("train_complete") is False:
        rows = sum(count for name, count in meta["splits"].items() if name.startswith("train"))
        notes.append(f"drawn from {rows:,} of {task.full_rows:,} training rows")
    validation = meta.get("validation")
    if isinstance(validation, str) and validation != "official":
        notes.append(f"validation rows {validation.partition(' by ')[0]}, not the official ones")
    return "; ".join(notes) or None
