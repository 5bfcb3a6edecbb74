import gzip
import json
from pathlib import Path
from random import Random
from statistics import median

import pytest

from loadtests.texts import MAX_CHARACTERS, MAX_WORDS, MIN_WORDS, made_up_text, made_up_texts, read_texts


def write_task(folder: Path, task: str, rows: list[dict[str, object]]) -> None:
    (folder / task).mkdir()
    with gzip.open(folder / task / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_lengths_are_mostly_short_with_a_long_tail() -> None:
    rng = Random(1)
    lengths = sorted(len(made_up_text(rng).split()) for _ in range(4000))
    assert lengths[0] >= MIN_WORDS
    assert lengths[-1] <= MAX_WORDS
    assert 12 <= median(lengths) <= 18
    assert 0.01 <= sum(length > 60 for length in lengths) / len(lengths) <= 0.1


def test_made_up_texts_are_never_blank_and_end_a_sentence() -> None:
    rng = Random(2)
    assert all((text := made_up_text(rng)).strip() and text[-1] in ".!?" for _ in range(500))


def test_same_seed_gives_the_same_texts() -> None:
    assert made_up_texts(3, 20) == made_up_texts(3, 20)
    assert made_up_texts(3, 20) != made_up_texts(4, 20)


def test_read_texts_tells_single_texts_from_pairs(tmp_path: Path) -> None:
    write_task(tmp_path, "mood", [{"text": "Fine.", "label": "good"}])
    write_task(tmp_path, "nli", [{"text": "A man eats.", "text_pair": "He eats.", "label": "yes"}])
    texts = read_texts(tmp_path, 1)
    assert list(texts.singles) == ["Fine."]
    assert list(texts.pairs) == [("A man eats.", "He eats.")]


def test_read_texts_leaves_out_blank_texts_and_halves_of_pairs(tmp_path: Path) -> None:
    write_task(tmp_path, "mood", [{"text": " \n", "label": "x"}, {"text": "Fine.", "label": "x"}])
    write_task(
        tmp_path, "nli", [{"text": "a", "text_pair": " ", "label": "x"}, {"text": "a", "text_pair": "b", "label": "x"}]
    )
    texts = read_texts(tmp_path, 1)
    assert list(texts.singles) == ["Fine."]
    assert list(texts.pairs) == [("a", "b")]


def test_read_texts_cuts_long_texts_and_takes_no_more_than_asked(tmp_path: Path) -> None:
    write_task(tmp_path, "mood", [{"text": "x" * 9000, "label": "x"}] * 9)
    write_task(tmp_path, "nli", [{"text": "a", "text_pair": "b", "label": "x"}])
    assert [len(text) for text in read_texts(tmp_path, 1, per_task=4).singles] == [MAX_CHARACTERS] * 4


def test_read_texts_without_pairs_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path, "mood", [{"text": "Fine.", "label": "good"}])
    with pytest.raises(ValueError, match="single texts and pairs"):
        read_texts(tmp_path, 1)


def test_the_labelled_text_of_this_machine_can_be_read(data_dir: Path) -> None:
    texts = read_texts(data_dir, 1, per_task=20)
    assert len(texts.singles) > 100
    assert len(texts.pairs) > 50
