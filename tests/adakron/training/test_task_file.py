import json

import pytest

from adakron.errors import DataError
from adakron.training.data import load_task
from adakron.training.task_file import load_data
from tests.adakron.training.labelled import pair_rows, save_task, write_jsonl


@pytest.fixture
def places(tmp_path):
    """Two sources beside each other: weather (cold, warm) and tone (high, low, odd)."""
    save_task(tmp_path / "weather", "single", 12, 6)
    tones = [{"text": f"tone {n}", "label": ("high", "low", "odd")[n % 3]} for n in range(9)]
    (tmp_path / "tone").mkdir()
    write_jsonl(tmp_path / "tone" / "train.jsonl", tones)
    write_jsonl(tmp_path / "tone" / "validation.jsonl", tones[:6])
    return tmp_path


def task(places, *sources: dict, **more: object) -> str:
    path = places / "task.json"
    path.write_text(json.dumps({"sources": sources, **more}))
    return str(path)


TONE = {"data": "tone", "labels": {"high": "up", "low": "down", "odd": None}}


def refusal(source: str, **settings) -> str:
    with pytest.raises(DataError) as caught:
        load_data(source, **settings)
    return str(caught.value)


def test_a_folder_is_read_as_ever(places) -> None:
    assert load_data(str(places / "tone")) == load_task(str(places / "tone"))


def test_labels_are_renamed_and_dropped(places) -> None:
    data = load_data(task(places, TONE))
    assert data.label_names == ("down", "up")
    assert [(row.text, row.label) for row in data.validation] == [
        ("tone 0", "up"),
        ("tone 1", "down"),
        ("tone 3", "up"),
        ("tone 4", "down"),
    ]


def test_a_star_stands_for_all_that_are_not_named(places) -> None:
    data = load_data(task(places, {"data": "tone", "labels": {"odd": "odd", "*": "even"}}))
    assert data.label_counts() == {"even": 6, "odd": 3}


def test_sources_are_joined_in_their_order(places) -> None:
    data = load_data(task(places, TONE, {"data": "weather"}, labels=["warm", "cold", "up", "down"]))
    assert data.label_names == ("warm", "cold", "up", "down")
    assert (len(data.train), len(data.validation)) == (6 + 12, 4 + 6)
    assert data.train[:6] == load_data(task(places, TONE)).train
    assert not data.held_out


def test_a_second_text_is_given_to_every_row_of_a_source(places) -> None:
    write_jsonl(places / "pairs.jsonl", pair_rows(4, seed=1))
    data = load_data(task(places, TONE | {"text_pair": "of voice"}, {"data": "weather", "text_pair": "outside"}))
    assert data.takes_pair
    assert {row.text_pair for row in data.train} == {"of voice", "outside"}


def test_most_takes_so_many_rows_of_a_split(places) -> None:
    few = task(places, TONE | {"most": {"train": 4, "validation": 3}})
    data = load_data(few)
    assert (len(data.train), len(data.validation)) == (4, 3)
    assert load_data(few) == data
    assert load_data(few, seed=14).train != data.train


def test_max_rows_is_of_all_sources_together(places) -> None:
    assert len(load_data(task(places, TONE, {"data": "weather"}), max_rows=5).train) == 5


def test_a_variable_names_the_place(places, tmp_path_factory, monkeypatch) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    source = {"data": "$DATA_FOR_THIS/tone", "labels": {"*": "any", "odd": "odd"}}
    path = elsewhere / "task.json"
    path.write_text(json.dumps({"sources": [source]}))
    monkeypatch.setenv("DATA_FOR_THIS", str(places))
    assert len(load_data(str(path)).train) == 9
    monkeypatch.delenv("DATA_FOR_THIS")
    assert "names a variable that is not set" in refusal(str(path))


def test_a_source_without_validation_gives_a_tenth(places) -> None:
    (places / "tone" / "validation.jsonl").unlink()
    write_jsonl(places / "tone" / "train.jsonl", [{"text": f"t{n}", "label": ("a", "b")[n % 2]} for n in range(40)])
    data = load_data(task(places, {"data": "tone"}))
    assert data.held_out
    assert (len(data.train), len(data.validation)) == (36, 4)


@pytest.mark.parametrize(
    ("sources", "more", "complaint"),
    [
        ([], {}, "expected at least one object"),
        (["tone"], {}, "expected at least one object"),
        ([TONE], {"label": ["up"]}, "expected an object of sources"),
        ([TONE], {"labels": []}, "labels: expected names"),
        ([TONE], {"labels": ["up", "left"]}, "'down' is not among the 2 named"),
        ([{"labels": {}}], {}, "sources[0]: data: expected a folder"),
        ([TONE, TONE | {"rows": 5}], {}, "sources[1]: the key 'rows' is none of"),
        ([TONE | {"text_pair": " "}], {}, "text_pair: expected a text"),
        ([TONE | {"labels": {"high": 1}}], {}, "expected an object of old labels"),
        ([TONE | {"most": {"train": 0}}], {}, "most: expected"),
        ([TONE | {"most": {"test": 5}}], {}, "most: expected"),
        ([TONE | {"most": 5}], {}, "most: expected"),
        ([{"data": "tone", "labels": {"hihg": "up", "*": "down"}}], {}, "the data has no label 'hihg'"),
        ([{"data": "tone", "labels": {"high": "up"}}], {}, "nothing is said of the label 'low'"),
        ([{"data": "tone", "labels": {"*": "any"}}], {}, "rows of 2 labels or more"),
        ([TONE, {"data": "weather", "text_pair": "b"}], {}, "some sources have a text_pair"),
    ],
)
def test_a_bad_task_file_is_refused(places, sources: list, more: dict, complaint: str) -> None:
    assert complaint in refusal(task(places, *sources, **more))


def test_a_task_file_that_is_no_json_is_refused(places) -> None:
    (places / "task.json").write_text("{")
    assert "cannot be read as JSON" in refusal(str(places / "task.json"))


@pytest.mark.parametrize("kind", ["multi", "value"])
def test_other_tasks_than_single_label_are_refused(places, kind: str) -> None:
    save_task(places / kind, kind, 12, 6)
    assert "joins single-label data" in refusal(task(places, {"data": kind}))
    assert "joins single-label data" in refusal(task(places, TONE), problem_type="regression")


def test_a_second_text_beside_the_row_s_own_is_refused(places) -> None:
    save_task(places / "pairs", "pair", 12, 6)
    assert "has one of its own" in refusal(task(places, {"data": "pairs", "text_pair": "b"}))
