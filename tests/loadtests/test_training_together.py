"""What the comparison of both ways of training makes of the processes it ran."""

import gzip
import json
from pathlib import Path

import pytest

from loadtests import training_together
from loadtests.training_together import SEPARATE, TOGETHER, Run, Spent, copy_task, measure, spend, summary, table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    source = tmp_path / "shared"
    for task in ("a", "b"):
        (source / task).mkdir(parents=True)
        (source / task / "meta.json").write_text('{"labels": ["x", "y"]}')
        for split in ("train", "validation"):
            lines = "\n".join(json.dumps({"text": f"{split} {n}", "label": "x"}) for n in range(20))
            (source / task / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        copy_task(source / task, tmp_path / "data" / task, train=6, validation=30)
    return tmp_path / "data"


def test_copies_are_bounded_and_keep_the_labels(data: Path) -> None:
    assert len((data / "a" / "train.jsonl").read_text().splitlines()) == 6
    assert len((data / "a" / "validation.jsonl").read_text().splitlines()) == 20
    assert (data / "a" / "train.jsonl").read_text() == (data / "b" / "train.jsonl").read_text()
    assert json.loads((data / "a" / "meta.json").read_text()) == {"labels": ["x", "y"]}


def test_both_ways_train_every_task_with_the_same_settings(data: Path, tmp_path: Path, monkeypatch) -> None:
    lines: list[list[str]] = []

    def fake(arguments: list[str]) -> Spent:
        lines.append(list(arguments))
        out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
        for folder in [] if out is None else [out] if arguments[0] == "train" else [out / "a", out / "b"]:
            folder.mkdir(parents=True)
            content = {"metric": "accuracy", "adapter": {"scores": {"accuracy": 0.5 if folder.name == "a" else 0.7}}}
            (folder / "eval_results.json").write_text(json.dumps(content))
        return Spent(10.0, 8.0, 100.0 + len(lines))

    monkeypatch.setattr(training_together, "spend", fake)
    separate = measure(SEPARATE, 3, data, ["--epochs", "2"], tmp_path / "one")
    together = measure(TOGETHER, 3, data, ["--epochs", "2"], tmp_path / "two")
    assert [line[0] for line in lines] == ["train", "train", "train", "train", "train-many"]
    assert all(line[-4:] == ["--epochs", "2", "--first-layer", "3"] for line in lines)
    assert (separate.wall_s, separate.start_s, separate.cpu_s, separate.peak_mib) == (20.0, 20.0, 16.0, 103.0)
    assert (together.wall_s, together.start_s, together.cpu_s, together.peak_mib) == (10.0, 10.0, 8.0, 105.0)
    assert separate.score == pytest.approx(0.6)


def test_the_summary_takes_medians_of_each_way() -> None:
    runs = [Run(SEPARATE, 0, wall, 50.0, 10.0, 8.0, 900.0, 0.7) for wall in (100.0, 140.0, 110.0)]
    runs.append(Run(TOGETHER, 0, 40.0, 30.0, 4.0, 3.0, 1200.0, 0.7))
    separate, together = sorted(summary(runs), key=lambda line: line["system"])
    assert (separate["rounds"], separate["wall_s"], separate["training_s"], separate["training_cpu_s"]) == (
        3,
        110,
        100,
        42,
    )
    assert (together["rounds"], together["training_s"]) == (1, 36)
    assert "| 0 | one process each | 3 | 110 | 50 | 100 | 42 | 900 | 0.7000 |" in table(summary(runs))


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"adakron inspect failed: .*nowhere"):
        spend(["inspect", "nowhere.safetensors"])


def test_a_process_is_measured() -> None:
    spent = spend(["inspect", "--help"])
    assert spent.wall_s > 0
    assert spent.cpu_s > 0
    assert spent.peak_mib > 5
