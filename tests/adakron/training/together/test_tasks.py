from pathlib import Path

import pytest

from adakron.errors import ConfigError, DataError
from adakron.training.together.tasks import entries


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("sst2", "rte"):
        (tmp_path / "glue" / name).mkdir(parents=True)
        (tmp_path / "glue" / name / "train.jsonl").touch()
    (tmp_path / "glue" / "notes").mkdir()
    return tmp_path


def toml(root: Path, text: str) -> Path:
    (root / "tasks.toml").write_text(text)
    return root / "tasks.toml"


def test_a_folder_of_tasks_gives_one_entry_each(root) -> None:
    found = entries([str(root / "glue")])
    assert [(entry.name, entry.source) for entry in found] == [
        ("rte", str(root / "glue" / "rte")),
        ("sst2", str(root / "glue" / "sst2")),
    ]


def test_a_task_s_folder_a_name_and_a_hub_data_set_give_one_entry(root) -> None:
    found = entries([str(root / "glue" / "rte"), "own=somewhere/else", "nyu-mll/glue:cola"])
    assert [(entry.name, entry.source) for entry in found] == [
        ("rte", str(root / "glue" / "rte")),
        ("own", "somewhere/else"),
        ("glue-cola", "nyu-mll/glue:cola"),
    ]


def test_the_file_adds_adapters_and_says_more_of_those_named(root) -> None:
    file = toml(root, '[rte]\nlr = 5e-4\n[other]\ndata = "glue/sst2"\nabout = "a.json"\nexamples = "e.json"\n')
    rte, other = entries([str(root / "glue" / "rte")], file)
    assert (rte.source, rte.settings) == (str(root / "glue" / "rte"), {"lr": 5e-4})
    assert (other.source, other.settings) == (str(root / "glue" / "sst2"), {})
    assert (other.about, other.examples) == (root / "a.json", root / "e.json")


def test_an_adapter_to_start_from_is_seen_from_the_file(root) -> None:
    (found,) = entries([], toml(root, '[x]\ndata = "glue/rte"\nstart_from = "runs/mnli"\n'))
    assert found.settings == {"start_from": str(root / "runs" / "mnli")}


def test_data_of_the_file_that_is_no_folder_beside_it_is_a_hub_data_set(root) -> None:
    (found,) = entries([], toml(root, '[x]\ndata = "nyu-mll/glue:rte"\n'))
    assert found.source == "nyu-mll/glue:rte"


def test_a_task_file_beside_the_file_is_taken_as_one(root) -> None:
    (root / "joined.json").write_text("{}")
    (found,) = entries([], toml(root, '[x]\ndata = "joined.json"\n'))
    assert found.source == str(root / "joined.json")


@pytest.mark.parametrize("name", ["../rte", "a/b", "", "..", "."])
def test_a_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="can name a folder"):
        entries([f"{name}=somewhere"])


def test_two_of_one_name_are_refused(root) -> None:
    with pytest.raises(ConfigError, match="'rte' comes twice") as caught:
        entries([str(root / "glue"), "rte=elsewhere"])
    assert caught.value.hint == "name one of them yourself: NAME=FOLDER"


def test_a_folder_without_tasks_is_refused(root) -> None:
    with pytest.raises(DataError, match="no train split, and no folder in it has one"):
        entries([str(root / "glue" / "notes")])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = ", DataError, "not TOML"),
        ("x = 1", DataError, "expected a table for each adapter; found x = 1"),
        ("[x]\nlr = 1e-3", DataError, r"\[x\] has no data"),
        ('[x]\ndata = 3\nlr = "a"', DataError, "expected text for data; found 3"),
        ('[x]\ndata = "d"\nstart_from = 3', DataError, "expected text for start_from; found 3"),
        ('[x]\ndata = "d"\nname = "y"', ConfigError, "is the adapter's name already"),
    ],
)
def test_a_bad_file_is_refused(text, error, message, root) -> None:
    with pytest.raises(error, match=message):
        entries([], toml(root, text))
