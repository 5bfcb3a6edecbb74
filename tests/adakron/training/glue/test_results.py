import threading
from pathlib import Path

import pytest

from adakron.errors import DataError
from adakron.training.glue.results import ResultFile
from tests.adakron.training.glue.made import result

ONE, TWO = result("adakron", "rte", 0.5), result("lora", "cola", 0.25)


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "deep" / "results.jsonl")
    assert file.read() == []
    file.append(ONE)
    file.append(TWO)
    assert file.read() == [ONE, TWO]


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_cut_short_is_no_result_and_spoils_none(kept: int, tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(ONE)
    whole = file.path.read_text()
    file.path.write_text(whole + whole[:kept])
    assert file.read()[:1] == [ONE]
    file.append(TWO)
    assert file.read() == [ONE, TWO]


@pytest.mark.parametrize("line", ["[]", "{}", '{"format_version": 2}', '{"format_version": 1, "task": "rte"}', "x"])
def test_a_line_that_is_no_result_is_refused_by_number(line: str, tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(ONE)
    file.path.write_text(file.path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"results.jsonl:2: no result of this release"):
        file.read()


def test_several_writers_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    writers = [threading.Thread(target=lambda: [ResultFile(path).append(ONE) for _ in range(20)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ResultFile(path).read()) == 80
