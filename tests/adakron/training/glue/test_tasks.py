import json
import os
from pathlib import Path

import pytest

from adakron.errors import DataError
from adakron.training.glue.tasks import TASKS, load_glue, task_named
from adakron.training.metrics import METRICS, choose_metric
from tests.adakron.training.glue.conftest import save_glue, task_rows

HUB_TABLES = {"mnli": ("train", "validation_matched", "validation_mismatched")}


def hub_table(name: str, count: int):
    """Rows as the hub has them: its own column names, label indices in the hub's order, an index column."""
    import datasets

    task = TASKS[name]
    rows = task_rows(task, count, seed=3)
    fields = dict(zip(task.columns, ("text", "text_pair"), strict=False))
    columns = {column: [row[field] for row in rows] for column, field in fields.items()}
    if task.labels is None:
        label, values = datasets.Value("float32"), [row["label"] for row in rows]
    else:
        label, values = datasets.ClassLabel(names=list(task.labels)), [task.labels.index(row["label"]) for row in rows]
    features = {column: datasets.Value("string") for column in columns} | {
        "label": label,
        "idx": datasets.Value("int32"),
    }
    content = columns | {"label": values, "idx": list(range(count))}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


@pytest.fixture
def hub(monkeypatch):
    import datasets

    def load(name: str, configuration: str):
        assert name == "nyu-mll/glue"
        splits = HUB_TABLES.get(configuration, ("train", "validation"))
        return {split: hub_table(configuration, 6 + number) for number, split in enumerate(splits)}

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("name", TASKS)
def test_the_hub_and_a_folder_give_the_same_kind_of_rows(name: str, hub, glue_folder: Path) -> None:
    task = TASKS[name]
    for source in (None, str(glue_folder)):
        data = load_glue(task, source, None).data
        assert data.label_names == (task.labels or ("value",))
        assert data.takes_pair == (len(task.columns) == 2)
        assert choose_metric(task.metric, data.problem_type, data.label_names) == task.metric
    assert len(load_glue(task, None, None).data.validation) == 7  # the matched half of MNLI


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_f1_is_of_the_pairs_that_are_alike(name: str, hub) -> None:
    """In the order of the alphabet it would be of the others."""
    data = load_glue(TASKS[name], None, None).data
    assert not data.label_names[1].startswith("not_")
    assert [data.target(row) for row in data.train] == [0, 1, 0, 1, 0, 1]


def test_rows_of_the_hub_with_an_empty_text_are_left_out(monkeypatch) -> None:
    import datasets

    table = hub_table("qqp", 6)
    blank = table.map(lambda row, number: {"question2": " "} if number == 2 else {}, with_indices=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": blank, "validation": table})
    assert len(load_glue(TASKS["qqp"], None, None).data.train) == 5


def test_what_is_not_official_is_said(tmp_path: Path) -> None:
    root = save_glue(tmp_path)
    meta = {
        "regression": False,
        "train_complete": False,
        "splits": {"train": 32, "validation": 24},
        "validation": "held out of train by this build (seed 13)",
    }
    (root / "qqp" / "meta.json").write_text(json.dumps(meta))
    assert load_glue(TASKS["qqp"], str(root), 8).note == (
        "drawn from 32 of 363,846 training rows; validation rows held out of train, not the official ones"
    )
    assert load_glue(TASKS["qnli"], str(root), 8).note is None
    found = load_glue(TASKS["qnli"], str(root), 8, 10)
    assert found.note == "10 of 24 validation rows"
    assert (len(found.data.train), len(found.data.validation)) == (8, 10)


def test_every_split_named_train_is_trained_on(tmp_path: Path) -> None:
    root = save_glue(tmp_path)
    rest = root / "sst2" / "train_rest.jsonl"
    rest.write_text((root / "sst2" / "train.jsonl").read_text())
    (root / "sst2" / "meta.json").write_text(json.dumps({"splits": {"train": 32, "train_rest": 32, "validation": 24}}))
    assert len(load_glue(TASKS["sst2"], str(root), None).data.train) == 64


def test_the_same_rows_are_drawn_every_time(glue_folder: Path) -> None:
    first, again = (load_glue(TASKS["rte"], str(glue_folder), 8, 8).data for _ in range(2))
    assert first.digest() == again.digest()


def test_a_folder_without_the_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rte: no such folder"):
        load_glue(TASKS["rte"], str(tmp_path), None)


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="no GLUE task 'wnli'") as caught:
        task_named("wnli")
    assert "mnli" in str(caught.value.hint)


def test_every_metric_that_counts_is_one() -> None:
    assert all({task.metric, *task.also} <= set(METRICS) for task in TASKS.values())


@pytest.mark.skipif("ADAKRON_DATA_DIR" not in os.environ, reason="reads labelled text")
@pytest.mark.parametrize("name", ["rte", "cola", "stsb"])
def test_real_rows_are_read(name: str) -> None:
    found = load_glue(TASKS[name], os.environ["ADAKRON_DATA_DIR"], 100)
    assert len(found.data.train) == 100
