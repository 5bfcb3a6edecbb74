from pathlib import Path

import pytest

from adakron import cli
from adakron.training.glue.results import ResultFile
from tests import tiny
from tests.adakron.training.glue.conftest import save_glue
from tests.adakron.training.labelled import save_backbone


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    return save_glue(tmp_path_factory.mktemp("glue"), train=16, validation=12)


@pytest.fixture(scope="module")
def long_backbones(tmp_path_factory):
    """Tiny encoders that take the authors' 256 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "MAX_POSITIONS", 300)
        root = tmp_path_factory.mktemp("long")
        return {family: save_backbone(root / family, family) for family in ("bert", "roberta")}


@pytest.mark.parametrize(
    ("suite", "family", "methods", "tasks"),
    [("paper-bert", "bert", "all", "rte"), ("paper-roberta", "roberta", "adakron,full", "rte")],
)
def test_the_paper_s_own_setting_is_one_line(
    suite: str, family: str, methods: str, tasks: str, glue: Path, long_backbones, tmp_path: Path, capsys
) -> None:
    """All of it but for the size of the encoder, the rows and the epochs."""
    out = tmp_path / "r.jsonl"
    line = ["glue", "--suite", suite, "--backbone", str(long_backbones[family]), "--methods", methods]
    line += ["--tasks", tasks, "--epochs", "1", "--data", str(glue), "--out", str(out)]
    assert cli.main(line) == 0
    results = ResultFile(out).read()
    assert len(results) == (10 if methods == "all" else 2)
    trained = [result for result in results if result.method != "probe"]
    assert {(r.config["max_length"], r.config["batch"], r.config["weight_decay"]) for r in trained} == {(256, 64, 0.1)}
    text = capsys.readouterr().out
    assert f"AdaKron r{48 if family == 'bert' else 16}" in text.splitlines()[-len({r.method for r in results})]


def test_the_quick_suite_prints_a_table_marked_quick(glue: Path, long_backbones, tmp_path: Path, capsys) -> None:
    out, page = tmp_path / "r.jsonl", tmp_path / "glue.md"
    line = ["glue", "--backbone", str(long_backbones["bert"]), "--methods", "probe", "--data", str(glue)]
    line += ["--out", str(out)]
    assert cli.main([*line, "--page", str(page)]) == 0
    text = capsys.readouterr().out
    assert "quick: backbone" in text
    columns = [line.split() for line in text.splitlines()]
    assert ["method", "parameters", "SST-2", "MRPC", "CoLA", "RTE", "STS-B", "average"] in columns
    assert "wrote" in text
    assert "Suite `quick`" in page.read_text()
    assert cli.main([*line, "--report"]) == 0
    assert "linear probe" in capsys.readouterr().out


@pytest.mark.parametrize("other", [["--seeds", "14"], ["--methods", "lora"], ["--tasks", "cola"]])
def test_a_report_is_of_the_seeds_methods_and_tasks_that_are_asked_for(
    other: list[str], glue: Path, long_backbones, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "r.jsonl"
    line = ["glue", "--backbone", str(long_backbones["bert"]), "--methods", "probe", "--tasks", "rte"]
    line += ["--out", str(out)]
    assert cli.main([*line, "--data", str(glue)]) == 0
    assert cli.main([*line, "--report", "--seeds", "13"]) == 0
    capsys.readouterr()
    assert cli.main([*line, "--report", *other]) == 1
    assert "no such results" in capsys.readouterr().err


def test_the_folder_of_data_may_come_from_the_environment(glue: Path, long_backbones, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ADAKRON_DATA_DIR", str(glue))
    line = ["glue", "--backbone", str(long_backbones["bert"]), "--methods", "probe", "--tasks", "rte"]
    assert cli.main([*line, "--out", str(tmp_path / "r.jsonl")]) == 0


@pytest.mark.parametrize(
    ("suite", "runs"), [("quick", 25), ("full", 48), ("whole", 80), ("paper-bert", 80), ("paper-roberta", 80)]
)
def test_a_dry_run_lists_what_would_run_and_writes_nothing(suite: str, runs: int, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    assert cli.main(["glue", "--suite", suite, "--dry-run", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == runs + 1
    assert "AdaKron r" in lines[1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "soup"], "no method 'soup'"),
        (["--tasks", "wnli"], "no GLUE task 'wnli'"),
        (["--data", "/nowhere"], "no such folder"),
        (["--report", "--out", "/nowhere/r.jsonl"], "no such results of the suite quick"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words: list[str], said: str, capsys) -> None:
    assert cli.main(["glue", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("words", [["--rates", "0"], ["--max-rows", "-1"], ["--seeds", "a"], ["--suite", "slow"]])
def test_wrong_usage_is_exit_code_2(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["glue", *words])


def test_a_package_that_is_missing_is_named(monkeypatch, capsys) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setattr("adakron.training.glue.runner.run_suite", missing)
    assert cli.main(["glue", "--data", "/nowhere"]) == 1
    assert 'this verb needs the package peft (pip install "adakron[train]")' in capsys.readouterr().err
