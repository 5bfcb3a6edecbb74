"""What a run found, as one line of JSON, and the file of such lines from which runs resume.

Knows lines; nothing of models or tables.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adakron.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run.

    key         names everything that decides its outcome: the same key is the same run
    attempt     which of the method's learning rates it tried, from 0
    config      the recipe, the learning rate among it
    rows        train and validation, and selection: validation rows that chose the epoch; note: what is not official
    parameters  trainable ones: method and head
    scores      on the whole validation set, at the best epoch
    training    epochs, best_epoch and the score that chose it, where there are epochs
    seconds     of this run alone, without the one on another task that it may begin with
    """

    key: str
    suite: str
    method: str
    task: str
    attempt: int
    seed: int
    config: Mapping[str, Any]
    rows: Mapping[str, Any]
    parameters: Mapping[str, int]
    scores: Mapping[str, float]
    training: Mapping[str, float]
    seconds: float
    date: str
    hardware: Mapping[str, Any]


class ResultFile:
    """A JSONL file of results, only ever appended to; a line that a crash cut short is no result."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Result]:
        """Every result, oldest first; none where there is no file. Raises DataError with the line that is none."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        found = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found.append(_result(line))
            except ValueError as error:
                if number == len(lines):
                    break  # cut short: a whole line ends in a newline
                raise DataError(f"{self.path}:{number}: no result of this release: {error}") from error
        return found

    def append(self, result: Result) -> None:
        """Add a line, on the disk when this returns. Several processes may add to one file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a crash cut short must not spoil this line
            file.write(_line(result).encode())
            file.flush()
            os.fsync(file.fileno())


def _line(result: Result) -> str:
    return json.dumps({"format_version": FORMAT_VERSION} | asdict(result), ensure_ascii=False) + "\n"


def _result(line: str) -> Result:
    raw = json.loads(line)
    if not isinstance(raw, dict) or raw.pop("format_version", None) != FORMAT_VERSION:
        raise ValueError(f"expected an object with format_version {FORMAT_VERSION}")
    try:
        return Result(**raw)
    except TypeError as error:
        raise ValueError(str(error)) from error
