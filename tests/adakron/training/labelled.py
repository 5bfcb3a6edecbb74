"""Small labelled data written for these tests: what a row says follows from a word or two in it."""

import json
import random
from pathlib import Path

from tests.tiny import WORDS, tiny_backbone

SUBJECTS = [word for word in WORDS if word not in ("good", "hot", "no", "down")]


def sentence(rnd: random.Random, *keys: str) -> str:
    words = [*rnd.sample(SUBJECTS, rnd.randint(2, 6)), *keys]
    rnd.shuffle(words)
    return " ".join(words)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def single_rows(count: int, seed: int) -> list[dict]:
    """ "good" or "hot" make a row warm, "no" or "down" cold."""
    rnd = random.Random(seed)
    rows = []
    for _ in range(count):
        key = rnd.choice(["good", "hot", "no", "down"])
        rows.append({"text": sentence(rnd, key), "label": "warm" if key in ("good", "hot") else "cold"})
    return rows


def multi_rows(count: int, seed: int) -> list[dict]:
    rnd = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [key for key in ("good", "hot", "down") if rnd.random() < 0.5]
        rows.append({"text": sentence(rnd, *labels, *labels), "label": labels})
    return rows


def pair_rows(count: int, seed: int) -> list[dict]:
    rnd = random.Random(seed)
    rows = []
    for _ in range(count):
        same = rnd.random() < 0.5
        second = sentence(rnd, "good") if same else sentence(rnd, "down")
        rows.append({"text": sentence(rnd), "text_pair": second, "label": "same" if same else "other"})
    return rows


def value_rows(count: int, seed: int) -> list[dict]:
    rnd = random.Random(seed)
    rows = []
    for _ in range(count):
        number = rnd.randint(0, 3)
        rows.append({"text": sentence(rnd, *["good"] * number), "label": float(number) + 2.0})
    return rows


ROWS = {"single": single_rows, "multi": multi_rows, "pair": pair_rows, "value": value_rows}


def save_task(folder: Path, kind: str, train: int = 96, validation: int = 32) -> Path:
    """A folder of rows of that kind."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", ROWS[kind](train, seed=1))
    write_jsonl(folder / "validation.jsonl", ROWS[kind](validation, seed=2))
    return folder


def save_backbone(folder: Path, family: str = "bert") -> Path:
    """A tiny backbone as a checkpoint folder."""
    backbone = tiny_backbone(family)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
