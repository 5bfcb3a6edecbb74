"""Files of rows: read strictly, written whole, and continued where they were cut short."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli_formats import Format
from server.client import Item, Result, RowFailure, Score
from server.text_rows import COLUMNS, RowsError, Writer, comes_from, count_rows, finished, format_of, item_of, read_rows

RESULT = Result("sst2", 1, "ab", "pos", 0.75, (Score("pos", 0.75),), None, None, 3, False)
MULTI = Result("topics", 1, "ab", None, 0.25, (), ("a", "b, c"), None, 3, False)
VALUE = Result("stsb", 1, "ab", None, None, (), None, 2.5, 3, True)
FAILURE = RowFailure("BLANK_TEXT", "the text is blank", "send a word", "sst2")

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1, max_size=12)


def read(text: str, form: str) -> list[dict[str, object]]:
    return list(read_rows(io.StringIO(text, newline=""), Format(form), "in"))


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", "jsonl"), ("a.NDJSON", "jsonl"), ("a.csv", "csv"), ("a.txt", "text"), ("-", "text")]
)
def test_format_is_told_by_the_name(name: str, form: str) -> None:
    assert format_of(Path(name)) == form


def test_rows_are_read_with_all_they_hold() -> None:
    assert read('"a"\n\n{"text": "b", "id": 7}\n', "jsonl") == [{"text": "a"}, {"text": "b", "id": 7}]
    assert read('text,id\n"a\nb",7\n', "csv") == [{"text": "a\nb", "id": "7"}]
    assert read("a \n\nb\n", "text") == [{"text": "a "}, {"text": "b"}]
    row = {"text": "a", "text_pair": "", "adapter": "x"}
    assert item_of(row) == Item("a", None, "x")


@pytest.mark.parametrize(
    ("text", "form", "complaint"),
    [
        ("{", "jsonl", "in, line 1: not JSON"),
        ('"a"\n3\n', "jsonl", "in, line 2: expected a string"),
        ('{"text": 3}', "jsonl", "in, line 1"),
        ('{"text": "a", "text_pair": 3}', "jsonl", "should be strings"),
        ("a,b\n1,2\n", "csv", "no column `text`"),
        ("", "csv", "no column `text`"),
        ("text,b\n1,2,3\n", "csv", "in, line 2"),
        ("text,b\n1\n", "csv", "in, line 2"),
        ('text\n"a"b\n', "csv", "not CSV"),
    ],
)
def test_what_is_not_rows_is_refused_with_its_place(text: str, form: str, complaint: str) -> None:
    with pytest.raises(RowsError, match=complaint.replace("`", ".")):
        read(text, form)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"text\n\xff\n")
    with (tmp_path / "x.csv").open(encoding="utf-8") as file, pytest.raises(RowsError, match="not UTF-8"):
        list(read_rows(file, Format.csv, "in"))


def written(form: str, *outcomes: Result | RowFailure) -> str:
    file = io.StringIO(newline="")
    writer = Writer(file, Format(form))
    for outcome in outcomes:
        writer.write({"text": 'a "b"\nc', "label": "gold", "n": 3}, outcome)
    return file.getvalue()


def test_results_stand_beside_what_came_in() -> None:
    first, second = (json.loads(line) for line in written("jsonl", RESULT, FAILURE).splitlines())
    assert (first["label"], first["result"]["label"], first["result"]["version"]) == ("gold", "pos", 1)
    assert "value" not in first["result"]
    assert second["error"]["code"] == "BLANK_TEXT"
    rows = read(written("csv", RESULT, MULTI, VALUE, FAILURE), "csv")
    assert list(rows[0]) == ["text", "label", "n", *COLUMNS]
    assert (rows[0]["text"], rows[0]["label"], rows[0]["result_label"]) == ('a "b"\nc', "gold", "pos")
    assert json.loads(str(rows[1]["result_labels"])) == ["a", "b, c"]
    assert (rows[2]["result_value"], rows[3]["error"]) == ("2.5", str(FAILURE))


def test_plain_lines_say_the_essence() -> None:
    lines = written("text", RESULT, MULTI, VALUE, FAILURE).replace('\ta "b"\nc', "").splitlines()
    assert lines == ["pos\t0.7500", "a, b, c\t0.2500", "2.5000\t", "error\tBLANK_TEXT"]


@pytest.mark.parametrize("form", [Format.jsonl, Format.csv])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_is_continued_after_its_last_whole_row(
    tmp_path_factory: pytest.TempPathFactory, form: Format, texts: list[str], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"cut.{form}"
    rows = [{"text": text, "text_pair": "b"} for text in texts]
    whole = io.StringIO(newline="")
    ends = []
    writer = Writer(whole, form)
    for row in rows:
        writer.write(row, RESULT)
        ends.append(len(whole.getvalue().encode()))
    data = whole.getvalue().encode()
    cut = min(cut, len(data))
    path.write_bytes(data[:cut])
    found = finished(path, form)
    expected = sum(end <= cut for end in ends)
    assert found.rows == expected
    assert found.size_bytes == (ends[expected - 1] if expected else 0)
    if expected:
        assert found.last is not None
        assert comes_from(found.last, rows[expected - 1])
        assert not comes_from(found.last, {"text": "another"})
    path.write_bytes(data)
    assert count_rows(path, form) == len(texts)


def test_rows_are_counted_without_the_last_newline(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\n\nb")
    assert count_rows(tmp_path / "x.txt", Format.text) == 2
    (tmp_path / "x.csv").write_text("")
    assert count_rows(tmp_path / "x.csv", Format.csv) == 0
