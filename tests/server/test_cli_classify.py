"""`adakron classify` against a server in this process: every way in and out, and going on after an interruption."""

import io
import json
from pathlib import Path

import pytest

from tests.server.cli_runs import Run
from tests.server.in_process import Server


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_texts_from_the_command_line(run: Run) -> None:
    code, out, err = run("classify", "-a", "sst2", "a fine film", "a dull one")
    assert (code, err) == (0, "")
    assert [line[2] for line in lines(out)] == ["a fine film", "a dull one"]
    assert {line[0] for line in lines(out)} <= {"negative", "positive"}


def test_a_label_that_is_not_sure_enough_is_left_out(run: Run) -> None:
    [[label, score, text]] = lines(run("classify", "-a", "sst2", "--abstain-below", "1", "a fine film")[1])
    assert (label, text) == ("", "a fine film")
    assert lines(run("classify", "-a", "sst2", "--abstain-below", "0", "a fine film")[1])[0][1] == score


def test_texts_from_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    code, out, _ = run("classify", "-a", "sst2", "--json")
    assert (code, [json.loads(line)["text"] for line in out.splitlines()]) == (0, ["one", "two"])


def test_rows_keep_what_they_came_with_and_name_their_adapters(run: Run, tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 1}, {"text": "b", "text_pair": "c", "adapter": "stsb", "id": 2}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run("classify", "-a", "sst2", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert (code, out) == (0, "")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["result"]["adapter"]) for row in found] == [(1, "sst2"), (2, "stsb")]


def test_from_csv_to_csv(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('\ufefftext,id\nfirst,1\n"sec\nond",2\n', encoding="utf-8")
    assert run("classify", "-a", "sst2", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,id,result_adapter,result_version,result_label")
    assert run("classify", "-a", "sst2", "-i", tmp_path / "in.csv", "--to", "csv")[1].count("sst2") == 2


def test_texts_that_fail_are_told_and_the_rest_is_done(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n" "\n"b"\n')
    code, out, err = run("classify", "-a", "sst2", "-i", tmp_path / "in.jsonl", "--json")
    assert (code, len(out.splitlines()), err.count("\n")) == (1, 3, 1)
    assert "1 texts could not be classified" in err
    assert "BLANK_TEXT" in err


def test_unknown_adapter_has_its_exit_code(run: Run) -> None:
    assert run("classify", "-a", "nothing", "x")[0] == 3


@pytest.mark.parametrize(
    "words",
    [
        ["x"],
        ["-a", "sst2", "x", "-i", "in.txt"],
        ["-a", "sst2", "--resume", "x", "-o", "out.jsonl"],
        ["-a", "sst2", "--resume", "-i", "in.txt"],
        ["-a", "sst2", "-i", "in.txt", "-o", "there.jsonl"],
        ["-a", "sst2", "-i", "in.txt", "-o", "there.txt", "--resume"],
        ["-a", "sst2", "-i", "in.txt", "-o", "there.jsonl", "--resume"],
        ["-a", "sst2", "--top-k", "0", "x"],
        ["-a", "sst2", "--abstain-below", "1.5", "x"],
        ["-a", "sst2", "--from", "xml", "x"],
    ],
)
def test_what_does_not_go_together_is_wrong_usage(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "there.jsonl").write_text('{"text": "something else", "result": {}}\n')
    (tmp_path / "there.txt").write_text("")
    code, _, err = run("classify", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert (tmp_path / "there.jsonl").read_text() == '{"text": "something else", "result": {}}\n'


def test_a_terminal_with_nothing_to_read_is_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert run("classify", "-a", "sst2")[0] == 2


def test_rows_that_are_none_are_refused_with_their_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n{\n')
    code, _, err = run("classify", "-a", "sst2", "-i", tmp_path / "in.jsonl")
    assert (code, "line 2" in err) == (1, True)
    assert run("classify", "-a", "sst2", "-i", tmp_path / "nothing.jsonl")[0] == 1


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_interrupted_file_is_continued(run: Run, server: Server, tmp_path: Path, form: str) -> None:
    source, whole, cut = tmp_path / "in.csv", tmp_path / f"whole.{form}", tmp_path / f"cut.{form}"
    source.write_text("text,id\n" + "".join(f'"line {n}\nand more",{n}\n' for n in range(300)))
    words = ["classify", "-a", "sst2", "-i", source]
    assert run(*words, "-o", whole)[0] == 0
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    server.wire.requests.clear()
    assert run(*words, "-o", cut, "--resume")[0] == 0
    assert cut.read_bytes() == data
    assert sum(len(json.loads(request.content)["inputs"]) for request in server.wire.requests) < 155
    assert run(*words, "-o", cut, "--resume")[0] == 0
    assert cut.read_bytes() == data
    assert run(*words, "-o", cut, "--overwrite")[0] == 0
    assert cut.read_bytes() == data
    assert run(*words, "-o", tmp_path / f"new.{form}", "--resume")[0] == 0


def test_progress_is_for_terminals(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("classify", "-a", "sst2", "x")[2] == ""
    monkeypatch.setattr("server.cli_progress.sys.stderr.isatty", lambda: True, raising=False)
    code, out, err = run("classify", "-a", "sst2", "x")
    assert (code, out.count("\n")) == (0, 1)
    assert "texts" in err
