"""Files of texts to classify, and files of what came out: JSON lines, CSV, or a text a line.

    in     jsonl  {"text": .., "text_pair": .., "adapter": .., anything else}, or a string     csv  the same as columns
    out    jsonl  the row as it came, with "result" or "error"                                 csv  result_*, error

A file of results that was cut short can be continued: `finished` finds its last whole record. Knows nothing of servers.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

from server.cli_formats import Format
from server.client import Item, Outcome, RowFailure

Row: TypeAlias = dict[str, Any]

_RESULT_COLUMNS = ("adapter", "version", "label", "score", "labels", "value", "truncated")
COLUMNS = (*(f"result_{name}" for name in _RESULT_COLUMNS), "error")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


class RowsError(Exception):
    """A file is not what it should be; the message names file and line."""


class Finished(NamedTuple):
    """What a file of rows holds for certain: whole rows, the bytes they take with what is before them, the last one."""

    rows: int
    size_bytes: int
    last: Row | None


def format_of(path: Path) -> Format:
    """Told by the name's ending; any other is a text a line."""
    return Format(_SUFFIXES.get(path.suffix.lower(), "text"))


def item_of(row: Mapping[str, Any]) -> Item:
    """The row's text, its pair and its adapter; empty ones of a CSV file are none."""
    return Item(row["text"], row.get("text_pair") or None, row.get("adapter") or None)


def read_rows(file: TextIO, form: Format, name: str) -> Iterator[Row]:
    """Row after row; each has a `text`. Raises RowsError, which calls the file `name`."""
    if form == "text":
        yield from ({"text": line.rstrip("\n")} for line in file if line.strip())
        return
    try:
        if form == "csv":
            yield from _csv_rows(file, name)
        else:
            yield from (_json_row(line, f"{name}, line {n}") for n, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise RowsError(f"{name} is not UTF-8") from error


def count_rows(path: Path, form: Format) -> int:
    """How many rows a file has, told by its newlines and quotes. Raises OSError."""
    extent = _extent(path, form)
    return max(0, extent.records + (extent.end < path.stat().st_size) - (form == "csv"))


def finished(path: Path, form: Format) -> Finished:
    """The whole rows of a file of results; a last one without its newline was cut short. Raises RowsError, OSError."""
    extent = _extent(path, form)
    if extent.records <= (form == "csv"):  # at most its head
        return Finished(0, 0, None)
    with path.open("rb") as file:
        head = file.read(extent.first_end) if form == "csv" else b""
        file.seek(extent.last_start)
        last = head + file.read(extent.end - extent.last_start)
    rows = read_rows(io.StringIO(last.decode(errors="replace"), newline=""), form, str(path))
    return Finished(extent.records - (form == "csv"), extent.end, next(rows, None))


class _Extent(NamedTuple):
    """Records that end with a newline, and where in the file, in bytes."""

    records: int
    first_end: int
    last_start: int
    end: int


def _extent(path: Path, form: Format) -> _Extent:
    found = _Extent(0, 0, 0, 0)
    size_bytes, quotes, is_blank = 0, 0, True
    with path.open("rb") as file:
        for line in file:
            size_bytes += len(line)
            is_blank = is_blank and not line.strip()
            quotes += line.count(b'"') if form == "csv" else 0
            if line.endswith(b"\n") and quotes % 2 == 0:  # a newline within quotes ends no record
                if not is_blank:
                    first_end = found.first_end or size_bytes
                    found = _Extent(found.records + 1, first_end, found.end, size_bytes)
                is_blank = True
    return found


class Writer:
    """Writes each row with what became of it. `is_new`: begins the file, with its head if it has one."""

    def __init__(self, file: TextIO, form: Format, *, is_new: bool = True) -> None:
        self._file, self._form, self._is_new = file, form, is_new
        self._csv: csv.DictWriter[str] | None = None

    def write(self, row: Row, outcome: Outcome) -> None:
        """One record, whole."""
        if self._form == "jsonl":
            self._file.write(json.dumps(row | _result(outcome), ensure_ascii=False) + "\n")
        elif self._form == "csv":
            self._csv_writer(row).writerow(_cells(row) | _result_cells(outcome))
        else:
            self._file.write(f"{_shown(outcome)}\t{row['text']}\n")

    def _csv_writer(self, row: Row) -> "csv.DictWriter[str]":
        if self._csv is None:
            names = [*(name for name in row if name not in COLUMNS), *COLUMNS]
            self._csv = csv.DictWriter(self._file, names, extrasaction="ignore", lineterminator="\n")
            if self._is_new:
                self._csv.writeheader()
        return self._csv


def comes_from(result: Row, row: Row) -> bool:
    """Whether a record of results was made of this row."""
    return all(result.get(name) == value for name, value in row.items() if name in ("text", "text_pair", "adapter"))


def _csv_rows(file: TextIO, name: str) -> Iterator[Row]:
    reader = csv.DictReader(file, strict=True)
    try:
        if "text" not in (reader.fieldnames or ()):
            raise RowsError(f"{name} has no column `text`")
        for row in reader:
            if None in row or None in row.values():
                raise RowsError(f"{name}, line {reader.line_num}: as many fields as the first line has were expected")
            yield row
    except csv.Error as error:
        raise RowsError(f"{name}, line {reader.line_num}: not CSV: {error}") from error


def _json_row(line: str, place: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RowsError(f"{place}: not JSON") from error
    row = {"text": found} if isinstance(found, str) else found
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise RowsError(f"{place}: expected a string, or an object with a `text`")
    if not all(isinstance(row.get(name), str | None) for name in ("text_pair", "adapter")):
        raise RowsError(f"{place}: text_pair and adapter should be strings")
    return row


def _result(outcome: Outcome) -> Row:
    if isinstance(outcome, RowFailure):
        return {"error": asdict(outcome)}
    return {"result": {name: value for name, value in asdict(outcome).items() if value is not None}}


def _cells(row: Row) -> Row:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


def _result_cells(outcome: Outcome) -> Row:
    if isinstance(outcome, RowFailure):
        return {"error": str(outcome)}
    labels = None if outcome.labels is None else json.dumps(outcome.labels, ensure_ascii=False)
    return {f"result_{name}": getattr(outcome, name) for name in _RESULT_COLUMNS} | {"result_labels": labels}


def _shown(outcome: Outcome) -> str:
    if isinstance(outcome, RowFailure):
        return f"error\t{outcome.code}"
    if outcome.value is not None:
        return f"{outcome.value:.4f}\t"
    label = ", ".join(outcome.labels) if outcome.labels is not None else outcome.label or ""
    return f"{label}\t{outcome.score:.4f}"
