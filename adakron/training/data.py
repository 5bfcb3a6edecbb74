"""Labelled rows for training: read from a folder or the hub, checked line by line.

A folder holds one file a split, `train` and, if there is one, `validation`, as .jsonl or .csv, also .gz, with the
fields `text`, `text_pair` (pair tasks) and `label`; `meta.json` beside them may name the labels in index order. Knows
rows and files; nothing of tokens or models.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from adakron.config import ProblemType
from adakron.errors import DataError

Label = str | tuple[str, ...] | float
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """label: a label's name, several names (multi-label), or a value (regression); where: file and line, for errors."""

    text: str
    text_pair: str | None
    label: Label
    where: str


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task's rows and what they imply.

    label_names  in index order; ("value",) for regression
    held_out     the validation rows were cut from train, for want of a validation split
    """

    problem_type: ProblemType
    label_names: tuple[str, ...]
    train: tuple[LabelledRow, ...]
    validation: tuple[LabelledRow, ...]
    held_out: bool

    @property
    def takes_pair(self) -> bool:
        return self.train[0].text_pair is not None

    def target(self, row: LabelledRow) -> int | float | list[float]:
        """What the loss compares the logits with: a class id, a value, or one 0 or 1 a label."""
        if isinstance(row.label, str):
            return self.label_names.index(row.label)
        if isinstance(row.label, tuple):
            return [float(name in row.label) for name in self.label_names]
        return row.label

    def label_shares(self) -> tuple[float, ...] | None:
        """Share of the training rows that carry each label, in index order; None for regression."""
        if self.problem_type == "regression":
            return None
        counts = self.label_counts()
        return tuple(round(counts[name] / len(self.train), 6) for name in self.label_names)

    def label_counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for row in self.train:
            counts.update([row.label] if isinstance(row.label, str) else cast(tuple[str, ...], row.label))
        return counts

    def digest(self) -> str:
        """sha256 of the rows of both splits in order: the same digest is the same data."""
        sha = hashlib.sha256()
        for rows in (self.train, self.validation):
            for row in rows:
                sha.update(json.dumps([row.text, row.text_pair, row.label], ensure_ascii=False).encode())
            sha.update(b"\n")
        return sha.hexdigest()


def load_task(
    source: str,
    *,
    train_splits: Sequence[str] = ("train",),
    validation_split: str = "validation",
    columns: Mapping[str, str] | None = None,
    label_names: Sequence[str] | None = None,
    skip_blank: bool = False,
    problem_type: ProblemType | None = None,
    max_rows: int | None = None,
    seed: int = 13,
) -> TaskData:
    """Read a folder, or, where no such folder exists, the hub data set `name` or `name:configuration`.

    columns      of a hub data set: the fields text and text_pair by the names they have there
    label_names  in index order; None: those of meta.json, or else of the training rows, sorted
    skip_blank   leave out a hub data set's rows that have an empty text, instead of refusing them

    Without a validation split a tenth of train is held out, chosen by `seed`. Raises DataError with file and line.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        meta = read_meta(folder)
        train = [row for split in train_splits for row in _read_split(folder, split)]
        validation = _read_split(folder, validation_split) if _find(folder, validation_split) else []
    else:
        meta = {}
        train, validation = _from_hub(source, train_splits, validation_split, columns or {}, skip_blank)
    if meta.get("regression") is True:
        problem_type = problem_type or "regression"
    problem_type = problem_type or _problem_type(train)
    train = [_converted(row, problem_type) for row in train]
    validation = [_converted(row, problem_type) for row in validation]
    named = list(label_names) if label_names else meta.get("labels")
    names = _label_names(train, named, problem_type)
    _check(train, names, problem_type)
    _check(validation, names, problem_type)
    held_out = not validation
    if held_out:
        train, validation = _hold_out(train, seed)
    if max_rows is not None and max_rows < len(train):
        train = random.Random(seed).sample(train, max_rows)
    if (train[0].text_pair is None) != (validation[0].text_pair is None):
        raise DataError(f"{validation[0].where}: train and validation differ in having a text_pair")
    return TaskData(problem_type, names, tuple(train), tuple(validation), held_out)


def _find(folder: Path, split: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()), None)


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of a folder's meta.json, empty where there is none. Raises DataError for one that is no object."""
    path = folder / "meta.json"
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: expected a JSON object")
    return meta


def _read_split(folder: Path, split: str) -> list[LabelledRow]:
    path = _find(folder, split)
    if path is None:
        raise DataError(
            f"{folder}: no {split} split", hint=f"expected {split}.jsonl or {split}.csv, with or without .gz"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = raw.decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}", hint="expected UTF-8 text, gzipped if it ends in .gz"
        ) from error
    records = _json_lines(path, content) if ".jsonl" in path.name else _csv_lines(path, content)
    rows = [_row(record, where) for record, where in records]
    if not rows:
        raise DataError(f"{path}: expected rows; found none")
    return rows


def _json_lines(path: Path, content: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object with text and label; found {type(record).__name__}")
        yield record, where


def _csv_lines(path: Path, content: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(content), strict=True)
    try:
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record:
                raise DataError(f"{where}: more fields than the first line names", hint="quote fields that hold commas")
            yield {key: value for key, value in record.items() if value is not None}, where
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _row(record: Mapping[str, Any], where: str) -> LabelledRow:
    for field in ("text", "label"):
        if field not in record:
            found = ", ".join(sorted(record)) or "nothing"
            raise DataError(
                f"{where}: no field {field!r}; found {found}", hint="name the columns text, text_pair and label"
            )
    text, pair, label = record["text"], record.get("text_pair"), record["label"]
    for field, value in (("text", text), ("text_pair", pair)):
        if field == "text_pair" and value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {field} is empty" if not value else f"{where}: {field} must be text")
    if isinstance(label, list) and all(isinstance(name, str) for name in label):
        return LabelledRow(text, pair, tuple(label), where)
    if isinstance(label, bool):
        return LabelledRow(text, pair, str(label).lower(), where)
    if isinstance(label, float):
        return LabelledRow(text, pair, label, where)
    if isinstance(label, (str, int)) and str(label).strip():
        return LabelledRow(text, pair, str(label), where)
    raise DataError(f"{where}: label must be a name, a list of names or a number; found {str(label)[:40]!r}")


def _problem_type(rows: Sequence[LabelledRow]) -> ProblemType:
    kinds = {type(row.label) for row in rows}
    if tuple in kinds:
        return "multi_label_classification"
    return "regression" if float in kinds else "single_label_classification"


def _converted(row: LabelledRow, problem_type: ProblemType) -> LabelledRow:
    """The row with its label in the form of the problem type. Raises DataError where there is none."""
    label = row.label
    if problem_type == "regression" and not isinstance(label, tuple):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return replace(row, label=value)
    elif problem_type == "multi_label_classification" and not isinstance(label, float):
        return replace(row, label=(label,) if isinstance(label, str) else label)
    elif problem_type == "single_label_classification" and isinstance(label, str):
        return row
    raise DataError(f"{row.where}: the label {str(label)[:40]!r} does not fit {problem_type}")


def _label_names(rows: Sequence[LabelledRow], named: object, problem_type: ProblemType) -> tuple[str, ...]:
    if problem_type == "regression":
        return ("value",)
    if isinstance(named, list) and named and all(isinstance(name, str) for name in named):
        return tuple(named)
    found: set[str] = set()
    for row in rows:
        found.update([row.label] if isinstance(row.label, str) else cast(tuple[str, ...], row.label))
    return tuple(sorted(found))


def _check(rows: Sequence[LabelledRow], names: Sequence[str], problem_type: ProblemType) -> None:
    known, present, pair = set(names), set[str](), rows[0].text_pair is not None if rows else False
    for row in rows:
        if (row.text_pair is not None) != pair:
            raise DataError(f"{row.where}: expected {'a' if pair else 'no'} text_pair, as in {rows[0].where}")
        if isinstance(row.label, float):
            continue
        carried = {row.label} if isinstance(row.label, str) else set(row.label)
        if unknown := sorted(carried - known):
            raise DataError(
                f"{row.where}: the label {unknown[0][:40]!r} is none of the {len(names)} known",
                hint="labels come from meta.json, or else from the training rows",
            )
        present |= carried
    least = 2 if problem_type == "single_label_classification" else 1
    if rows and problem_type != "regression" and len(present) < least:
        raise DataError(f"{rows[0].where}: expected rows of {least} labels or more; found only {sorted(present)}")


def _hold_out(rows: list[LabelledRow], seed: int) -> tuple[list[LabelledRow], list[LabelledRow]]:
    count = max(1, round(len(rows) * HELD_OUT_SHARE))
    if len(rows) < 2:
        raise DataError(f"{rows[0].where}: expected at least 2 rows, to hold one out for validation")
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )


def _from_hub(
    source: str, train_splits: Sequence[str], validation_split: str, columns: Mapping[str, str], skip_blank: bool
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    from datasets import ClassLabel, load_dataset

    name, _, configuration = source.partition(":")
    try:
        splits = load_dataset(name, configuration or None)
    except Exception as error:  # the library raises what its file systems raise, OSError and ValueError among others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: neither a folder here nor a data set that can be loaded: {reason[:200]}",
            hint="name a folder with train.jsonl, or a hub data set as owner/name or owner/name:configuration",
        ) from error
    for split in train_splits:
        if split not in splits:
            raise DataError(f"{source}: no split {split!r}; found {', '.join(sorted(splits))}")

    def rows(split: str) -> list[LabelledRow]:
        table = splits[split]
        label = table.features.get("label")
        names = label.names if isinstance(label, ClassLabel) else None
        found = []
        for number, record in enumerate(table, start=1):
            named = {columns.get(column, column): value for column, value in record.items()}
            if names:
                named["label"] = names[record["label"]]
            if not (skip_blank and _has_blank(named)):
                found.append(_row(named, f"{source} {split}:{number}"))
        return found

    train = [row for split in train_splits for row in rows(split)]
    return train, rows(validation_split) if validation_split in splits else []


def _has_blank(record: Mapping[str, Any]) -> bool:
    return any(isinstance(text := record.get(field), str) and not text.strip() for field in ("text", "text_pair"))
