"""The eight tasks in folders, of a few rows written here."""

import json
import random
from pathlib import Path

import pytest

from adakron.training.glue.tasks import TASKS, GlueTask
from tests.adakron.training.labelled import sentence, write_jsonl

KEYS = ("good", "down", "hot")


def task_rows(task: GlueTask, count: int, seed: int) -> list[dict]:
    """A word in the last text says the label."""
    rnd = random.Random(seed)
    rows = []
    for number in range(count):
        kind = number % (3 if task.labels is None else len(task.labels))
        label = float(kind) + 0.5 if task.labels is None else task.labels[kind]
        texts = [sentence(rnd) for _ in task.columns[1:]] + [sentence(rnd, KEYS[kind], KEYS[kind])]
        rows.append(dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": label})
    return rows


def save_glue(root: Path, train: int = 32, validation: int = 24) -> Path:
    for task in TASKS.values():
        folder = root / task.name
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", task_rows(task, train, 1))
        write_jsonl(folder / "validation.jsonl", task_rows(task, validation, 2))
        (folder / "meta.json").write_text(json.dumps({"regression": task.labels is None}))
    return root


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory) -> Path:
    return save_glue(tmp_path_factory.mktemp("glue"))
