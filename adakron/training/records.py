"""What a finished run leaves on disk beside the artefact, as JSON: its settings and its scores.

    training_args.json   everything that repeats the run; `--like` reads it
    eval_results.json    scores on validation, the adapter's and its baselines', and its calibration
    task.json            of what data the task was made, where a task file made it

Knows keys and values; the wording for people is in `adakron.training.card`.
"""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import adakron
from adakron.errors import ConfigError, DataError
from adakron.training.calibration import Measured
from adakron.training.data import TaskData
from adakron.training.recipe import Recipe
from adakron.training.run import Trained
from adakron.training.task_file import TASK_FILE

RESULTS_FILE = "eval_results.json"
SETTINGS_FILE = "training_args.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class About:
    """What only the person who trains can know. All of it may be left empty.

    does         one sentence: what goes in, what comes out
    dataset      its public name; dataset_id: its id on a model hub; dataset_url: where it is published
    licence      of the data, in words; licence_id: the weights' licence as hubs name it
    data_note    which part of the data set was used
    limits       what the adapter should not be trusted with
    attempts     recipes that were tried, when there was more than one: a choice made on the validation rows too
    """

    does: str = ""
    dataset: str = ""
    dataset_id: str = ""
    dataset_url: str = ""
    licence: str = ""
    licence_id: str = ""
    citation: str = ""
    data_note: str = ""
    limits: str = ""
    attempts: str = ""
    language: str = "en"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "About":
        """Raises ConfigError naming a key that is unknown or no text."""
        known = {item.name for item in fields(cls)}
        for key, value in raw.items():
            if key not in known or not isinstance(value, str):
                hint = f"known: {', '.join(sorted(known))}"
                raise ConfigError(f"about: {key!r} is not a text field of it", key=key, hint=hint)
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class Settings:
    """data: rows of each split, whether validation was held out, sha256 of all rows, whether a task file made them."""

    recipe: Recipe
    about: About
    data: Mapping[str, Any]


def settings(recipe: Recipe, about: About, data: TaskData, *, by_task_file: bool = False) -> dict[str, Any]:
    """The content of training_args.json."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "about": asdict(about),
        "data": {
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "validation_held_out": data.held_out,
            "sha256": data.digest(),
            "task_file": by_task_file,
        },
        "environment": {
            "adakron": adakron.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        },
    }


def read_settings(folder: Path) -> Settings:
    """A folder's training_args.json. Raises DataError, or ConfigError naming a bad key."""
    path = folder / SETTINGS_FILE
    raw = _read_object(path)
    if raw.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: this release reads format_version {FORMAT_VERSION}; found {raw.get('format_version')!r}",
            hint="upgrade adakron to read it",
        )
    for key in ("recipe", "about", "data"):
        if not isinstance(raw.get(key), dict):
            raise DataError(f"{path}: expected an object {key!r}")
    return Settings(Recipe.from_dict(raw["recipe"]), About.from_dict(raw["about"]), raw["data"])


def results(
    trained: Trained,
    data: TaskData,
    metric: str,
    baselines: Mapping[str, Mapping[str, Any]],
    measured: Measured | None = None,
) -> dict[str, Any]:
    """The content of eval_results.json; baselines by name: full_fine_tuning, linear_probe."""
    outcome = trained.outcome
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "split": "held out of train" if data.held_out else "validation",
        "rows": len(data.validation),
        "metric": metric,
        "adapter": {
            "scores": trained.scores,
            "parameters": trained.adapter.parameters,
            "sha256": trained.adapter.sha256,
            "epochs": outcome.epochs,
            "best_epoch": outcome.best_epoch,
            "seconds": round(trained.seconds),
        },
        **({"calibration": calibration_record(measured)} if measured else {}),
        **baselines,
    }


def calibration_record(measured: Measured) -> dict[str, Any]:
    """What eval_results.json holds under `calibration`."""
    return {"date": datetime.now(UTC).date().isoformat(), **asdict(measured)}


def write_folder(
    folder: Path,
    trained: Trained,
    written: Mapping[str, Any],
    found: Mapping[str, Any],
    task_file: Path | None = None,
) -> None:
    """Write the artefact, its settings and its results, replacing files of the same names; copy the task file."""
    trained.adapter.write(folder)
    write_records(folder, written, found)
    copy = folder / TASK_FILE
    if task_file is None:
        copy.unlink(missing_ok=True)  # of the adapter that was here before
    elif not (copy.exists() and copy.samefile(task_file)):
        shutil.copyfile(task_file, copy)


def write_records(folder: Path, written: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write settings and results, replacing those that are there."""
    _write_json(folder / SETTINGS_FILE, written)
    _write_json(folder / RESULTS_FILE, found)


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a folder's eval_results.json. Raises DataError where there is none."""
    return _read_object(folder / RESULTS_FILE)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="name a folder that `adakron train` wrote") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected a JSON object")
    return raw
