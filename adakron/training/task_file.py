"""A task made of data that is there already: a JSON file that names its sources and says what becomes of their labels.

    {"labels": ["yes", "no", "?"],
     "sources": [{"data": "$ADAKRON_DATA_DIR/replies", "labels": {"sure": "yes", "nope": "no", "spam": null, "*": "?"}},
                 {"data": "more", "text_pair": "second text of its rows", "most": {"train": 500, "validation": 50}}]}

`data` is what `--data` takes, a path being relative to the file. A source's `labels` maps old labels to new ones; null
drops the rows, "*" stands for all labels that are not named, and without `labels` they stay as they are. `most` takes
so many rows of a split, chosen by seed, so that a large source does not drown a small one. Knows rows; reading them is
the work of `adakron.training.data`.
"""

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adakron.config import ProblemType
from adakron.errors import DataError
from adakron.training.calibration import require_labels
from adakron.training.data import LabelledRow, TaskData, load_task
from adakron.training.metrics import choose_metric
from adakron.training.recipe import Recipe

TASK_FILE = "task.json"
OTHERS = "*"


def is_task_file(source: str) -> bool:
    """Whether `source` names a task file rather than a folder or a hub data set."""
    return source.endswith(".json") and Path(source).expanduser().is_file()


def load_for(recipe: Recipe, source: str) -> tuple[TaskData, str]:
    """The data that a recipe is trained on, and the metric its best epoch is chosen by. Raises DataError."""
    data = load_data(
        source,
        train_splits=recipe.train_splits,
        problem_type=recipe.problem_type,
        max_rows=recipe.max_rows,
        seed=recipe.seed,
    )
    metric = choose_metric(recipe.metric, data.problem_type, data.label_names)
    require_labels(recipe, data)
    return data, metric


def load_data(
    source: str,
    *,
    train_splits: Sequence[str] = ("train",),
    problem_type: ProblemType | None = None,
    max_rows: int | None = None,
    seed: int = 13,
) -> TaskData:
    """What `load_task` reads, or a task file. Raises DataError, for a task file with its name and the source's number.

    A source without a validation split gives a tenth of its own rows.
    """
    if not is_task_file(source):
        return load_task(source, train_splits=train_splits, problem_type=problem_type, max_rows=max_rows, seed=seed)
    path = Path(source).expanduser()
    content = _content(path)
    train: list[LabelledRow] = []
    validation: list[LabelledRow] = []
    held_out = False
    for number, entry in enumerate(content["sources"]):
        where = f"{path}: sources[{number}]"
        data = load_task(_place(entry, path, where), train_splits=train_splits, seed=seed)
        if data.problem_type != "single_label_classification" or problem_type not in (None, data.problem_type):
            raise DataError(f"{where}: a task file joins single-label data; found {data.problem_type}")
        _check_map(entry.get("labels"), data, where)
        most = entry.get("most") or {}
        train += _some(_changed(data.train, entry, where), most.get("train"), seed)
        validation += _some(_changed(data.validation, entry, where), most.get("validation"), seed)
        held_out = held_out or data.held_out
    names = tuple(content.get("labels") or sorted({str(row.label) for row in train}))
    _check(path, names, train, validation)
    train = _some(train, max_rows, seed)
    return TaskData("single_label_classification", names, tuple(train), tuple(validation), held_out)


def _some(rows: list[LabelledRow], most: int | None, seed: int) -> list[LabelledRow]:
    return rows if most is None or most >= len(rows) else random.Random(seed).sample(rows, most)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not set(content) <= {"labels", "sources"}:
        raise DataError(f"{path}: expected an object of sources and, if need be, labels in index order")
    sources, names = content.get("sources"), content.get("labels")
    if not isinstance(sources, list) or not sources or not all(isinstance(entry, dict) for entry in sources):
        raise DataError(f"{path}: sources: expected at least one object")
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path}: labels: expected names in index order")
    for number, entry in enumerate(sources):
        where = f"{path}: sources[{number}]"
        if unknown := sorted(set(entry) - {"data", "labels", "most", "text_pair"}):
            raise DataError(f"{where}: the key {unknown[0]!r} is none of data, labels, most, text_pair")
        if not isinstance(entry.get("data"), str):
            raise DataError(f"{where}: data: expected a folder or a hub data set")
        pair, renamed = entry.get("text_pair"), entry.get("labels")
        if pair is not None and not (isinstance(pair, str) and pair.strip()):
            raise DataError(f"{where}: text_pair: expected a text")
        if renamed is not None and not (
            isinstance(renamed, dict) and all(value is None or isinstance(value, str) for value in renamed.values())
        ):
            raise DataError(f"{where}: labels: expected an object of old labels and new ones, or null to drop rows")
        most = entry.get("most", {})
        if (
            not isinstance(most, dict)
            or not set(most) <= {"train", "validation"}
            or not all(map(_is_count, most.values()))
        ):
            raise DataError(f"{where}: most: expected an object of train and validation with numbers of rows")
    return content


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _place(entry: Mapping[str, Any], path: Path, where: str) -> str:
    named = os.path.expandvars(entry["data"])
    if "$" in named:
        raise DataError(f"{where}: data: {named} names a variable that is not set", hint="export it")
    beside = path.parent / Path(named).expanduser()
    return str(beside) if beside.is_dir() else named


def _check_map(renamed: Mapping[str, str | None] | None, data: TaskData, where: str) -> None:
    if renamed is None:
        return
    if unknown := sorted(set(renamed) - {OTHERS} - set(data.label_names)):
        raise DataError(f"{where}: labels: the data has no label {unknown[0][:40]!r}")
    missing = sorted(set(data.label_names) - set(renamed))
    if missing and OTHERS not in renamed:
        hint = f'say what becomes of it, or of all others with "{OTHERS}"'
        raise DataError(f"{where}: labels: nothing is said of the label {missing[0][:40]!r}", hint=hint)


def _changed(rows: Iterable[LabelledRow], entry: Mapping[str, Any], where: str) -> list[LabelledRow]:
    renamed, pair = entry.get("labels"), entry.get("text_pair")
    changed = []
    for row in rows:
        label = str(row.label)
        new = label if renamed is None else renamed.get(label, renamed.get(OTHERS))
        if new is None:
            continue
        if pair is not None and row.text_pair is not None:
            raise DataError(f"{where}: text_pair is given, and {row.where} has one of its own")
        changed.append(replace(row, label=new, text_pair=row.text_pair if pair is None else pair))
    return changed


def _check(path: Path, names: Sequence[str], train: Sequence[LabelledRow], validation: Sequence[LabelledRow]) -> None:
    for split, rows in (("training", train), ("validation", validation)):
        present = {str(row.label) for row in rows}
        if unknown := sorted(present - set(names)):
            raise DataError(f"{path}: labels: {unknown[0][:40]!r} is not among the {len(names)} named")
        if len(present) < 2:
            raise DataError(f"{path}: expected {split} rows of 2 labels or more; found only {sorted(present)}")
        if len({row.text_pair is None for row in rows}) > 1:
            raise DataError(f"{path}: some sources have a text_pair and others have none")
