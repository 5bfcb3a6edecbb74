import json

from adakron.training.data import load_task
from adakron.training.statistics import measure
from tests.tiny import tiny_tokenizer


def test_rows_labels_and_lengths_are_counted(tmp_path) -> None:
    rows = [("the good", "a")] * 6 + [("the good hot word", "b")] * 2
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "validation.jsonl").write_text(lines)
    found = measure(load_task(str(tmp_path)), tiny_tokenizer(), max_length=5)
    assert (found.commonest, found.rarest, found.imbalance) == (("a", 6), ("b", 2), 3.0)
    assert (found.median_length, found.longest) == (4, 6)  # two special tokens each
    assert (found.train_over_max_length, found.validation_over_max_length) == (2, 2)
    assert "over max_length 5, cut: 2 train rows (25.0%), 2 validation" in found.lines()


def test_a_label_that_no_row_carries_is_the_rarest(tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 4)
    (tmp_path / "meta.json").write_text('{"labels": ["x", "y", "never"]}')
    found = measure(load_task(str(tmp_path)), tiny_tokenizer(), max_length=8)
    assert found.rarest == ("never", 0)
    assert found.imbalance == 4.0


def test_regression_has_no_imbalance(tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0.5}\n{"text": "b", "label": 1.5}\n')
    found = measure(load_task(str(tmp_path)), tiny_tokenizer(), max_length=8)
    assert found.imbalance is None
    assert not any("labels" in line for line in found.lines())
