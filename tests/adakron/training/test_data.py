import gzip
import json

import pytest

from adakron.errors import DataError
from adakron.training.data import load_task
from tests.adakron.training.labelled import pair_rows, single_rows, write_jsonl


def folder_of(tmp_path, train: str, validation: str | None = None, meta: dict | None = None):
    (tmp_path / "train.jsonl").write_text(train, encoding="utf-8")
    if validation is not None:
        (tmp_path / "validation.jsonl").write_text(validation, encoding="utf-8")
    if meta is not None:
        (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return str(tmp_path)


GOOD = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'


def test_labels_are_sorted_where_nothing_names_them(tmp_path) -> None:
    names = ["pear", "fig", "plum", "apple", "quince", "cherry"]
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": name} for name in names])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": name} for name in names[:2]])
    data = load_task(str(tmp_path))
    assert data.label_names == ("apple", "cherry", "fig", "pear", "plum", "quince")
    assert [data.target(row) for row in data.train] == [3, 2, 4, 0, 5, 1]


def test_meta_json_gives_the_label_order(tmp_path) -> None:
    data = load_task(folder_of(tmp_path, GOOD, GOOD, {"labels": ["y", "z", "x"]}))
    assert data.label_names == ("y", "z", "x")


def test_whole_numbers_are_class_names(tmp_path) -> None:
    data = load_task(folder_of(tmp_path, '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'))
    assert (data.problem_type, data.label_names) == ("single_label_classification", ("0", "1"))


def test_a_fraction_among_the_labels_means_regression(tmp_path) -> None:
    data = load_task(folder_of(tmp_path, '{"text": "a", "label": 2}\n{"text": "b", "label": 0.5}\n'))
    assert data.problem_type == "regression"
    assert data.label_shares() is None


def test_meta_json_can_say_regression(tmp_path) -> None:
    rows = '{"text": "a", "label": 2}\n{"text": "b", "label": 1}\n'
    assert load_task(folder_of(tmp_path, rows, meta={"regression": True, "labels": None})).problem_type == "regression"


def test_lists_mean_multi_label(tmp_path) -> None:
    data = load_task(folder_of(tmp_path, '{"text": "a", "label": ["p", "q"]}\n{"text": "b", "label": []}\n', GOOD2))
    assert data.problem_type == "multi_label_classification"
    assert [data.target(row) for row in data.train] == [[1.0, 1.0], [0.0, 0.0]]
    assert data.label_shares() == (0.5, 0.5)


GOOD2 = '{"text": "c", "label": ["q"]}\n'


def test_csv_and_gzip_read_the_same_rows(tmp_path) -> None:
    plain, zipped = tmp_path / "csv", tmp_path / "gz"
    plain.mkdir(), zipped.mkdir()
    (plain / "train.csv").write_text('text,label\n"a, b",x\nc,y\n', encoding="utf-8")
    (plain / "validation.csv").write_text("text,label\nd,x\ne,y\n", encoding="utf-8")
    rows = [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]
    (zipped / "train.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    write_jsonl(zipped / "validation.jsonl", [{"text": "d", "label": "x"}, {"text": "e", "label": "y"}])
    assert load_task(str(plain)).digest() == load_task(str(zipped)).digest()


def test_a_text_that_holds_a_line_separator_stays_one_row(tmp_path) -> None:
    data = load_task(folder_of(tmp_path, '{"text": "a\u2028b", "label": "x"}\n{"text": "b", "label": "y"}\n', GOOD))
    assert data.train[0].text == "a\u2028b"


def test_a_tenth_is_held_out_by_seed_without_validation(tmp_path) -> None:
    write_jsonl(tmp_path / "train.jsonl", single_rows(50, seed=3))
    first, again, other = (load_task(str(tmp_path), seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.validation), first.held_out) == (45, 5, True)
    assert first == again
    assert first.validation != other.validation
    assert not set(first.train) & set(first.validation)


def test_several_splits_are_trained_on_in_order(tmp_path) -> None:
    folder_of(tmp_path, GOOD, GOOD)
    write_jsonl(tmp_path / "more.jsonl", [{"text": "c", "label": "x"}])
    data = load_task(str(tmp_path), train_splits=("train", "more"))
    assert [row.text for row in data.train] == ["a", "b", "c"]


def test_max_rows_takes_that_many_by_seed(tmp_path) -> None:
    write_jsonl(tmp_path / "train.jsonl", single_rows(40, seed=3))
    write_jsonl(tmp_path / "validation.jsonl", single_rows(10, seed=4))
    first, again = (load_task(str(tmp_path), max_rows=7, seed=5) for _ in range(2))
    assert len(first.train) == 7
    assert first.train == again.train


def test_the_digest_changes_with_a_label(tmp_path) -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "x")]
    digests = []
    for name, last in (("one", "x"), ("two", "y")):
        (tmp_path / name).mkdir()
        lines = [{"text": text, "label": label} for text, label in rows] + [{"text": "d", "label": last}]
        write_jsonl(tmp_path / name / "train.jsonl", lines)
        write_jsonl(tmp_path / name / "validation.jsonl", lines[:2])
        digests.append(load_task(str(tmp_path / name)).digest())
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{broken\n", "train.jsonl:1: not JSON"),
        ("[1]\n", "train.jsonl:1: expected an object"),
        ('{"text": "a", "label": "x"}\n{"sentence": "b", "label": "y"}\n', "train.jsonl:2: no field 'text'"),
        ('{"text": "a"}\n', "train.jsonl:1: no field 'label'"),
        (GOOD + '\n{"text": "  ", "label": "x"}\n', "train.jsonl:4: text"),
        ('{"text": 5, "label": "x"}\n', "train.jsonl:1: text must be text"),
        ('{"text": "a", "label": null}\n', "train.jsonl:1: label must be"),
        ('{"text": "a", "label": ["x", 1]}\n', "train.jsonl:1: label must be"),
        ('{"text": "a", "label": "x"}\n' * 3, "train.jsonl:1: expected rows of 2 labels"),
        (GOOD + '{"text": "c", "text_pair": "d", "label": "x"}\n', "train.jsonl:3: expected no text_pair"),
        (GOOD + '{"text": "c", "label": 0.5}\n', "train.jsonl:1: the label 'x' does not fit regression"),
        (GOOD + '{"text": "c", "label": NaN}\n', "does not fit regression"),
        ("", "train.jsonl: expected rows; found none"),
    ],
)
def test_a_bad_train_file_is_refused_with_its_line(tmp_path, train: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_task(folder_of(tmp_path, train))
    assert message in str(caught.value)


def test_a_validation_label_that_train_lacks_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"validation.jsonl:1: the label 'z' is none of the 2 known"):
        load_task(folder_of(tmp_path, GOOD, '{"text": "a", "label": "z"}\n'))


def test_validation_must_have_pairs_if_train_has(tmp_path) -> None:
    write_jsonl(tmp_path / "train.jsonl", pair_rows(8, seed=1))
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": "same"}, {"text": "b", "label": "other"}])
    with pytest.raises(DataError, match="differ in having a text_pair"):
        load_task(str(tmp_path))


def test_a_missing_train_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no train split"):
        load_task(str(tmp_path))


def test_a_damaged_gzip_file_is_refused(tmp_path) -> None:
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(DataError, match=r"train.jsonl.gz: cannot be read"):
        load_task(str(tmp_path))


def test_a_file_that_is_no_utf8_is_refused(tmp_path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "\xff", "label": "x"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        load_task(str(tmp_path))


def test_csv_with_too_many_fields_is_refused_with_its_line(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,c,y\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train.csv:3: more fields"):
        load_task(str(tmp_path))


def test_a_bad_meta_file_is_refused(tmp_path) -> None:
    folder_of(tmp_path, GOOD)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta.json: cannot be read"):
        load_task(str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_data_set_is_refused(monkeypatch) -> None:
    import datasets

    def missing(*_: object) -> None:
        raise FileNotFoundError("no such data set\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(DataError, match=r"owner/nothing: neither a folder here .*: no such data set$"):
        load_task("owner/nothing")


def test_hub_rows_take_their_label_names_from_the_features(monkeypatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []

    def load(name: str, configuration: str | None) -> dict[str, datasets.Dataset]:
        asked.append((name, configuration))
        return {"train": table, "validation": table}

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_task("owner/name:small")
    assert asked == [("owner/name", "small")]
    assert [row.label for row in data.train] == ["yes", "no"]
