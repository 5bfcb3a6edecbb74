import json

import pytest
import torch

from adakron import cli
from adakron.artefact import Adapter
from adakron.training.together.lane import Lane
from tests.adakron.test_cli import refused
from tests.adakron.training.labelled import save_backbone, save_task


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two tasks in a folder, trained together by the command line."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("many")
    backbone = save_backbone(root / "tiny-bert")
    for name, kind in (("weather", "single"), ("pairs", "pair")):
        save_task(root / "data" / name, kind, 48, 16)
    (root / "about.json").write_text(json.dumps({"dataset": "Weather", "licence": "CC0 1.0"}))
    (root / "texts.json").write_text(json.dumps({"examples": [{"text": "the good word", "text_pair": None}]}))
    (root / "tasks.toml").write_text('[weather]\nabout = "about.json"\nexamples = "texts.json"\nbottleneck = 24\n')
    line = ["train-many", "--data", str(root / "data"), "--tasks", str(root / "tasks.toml"), "--out", str(root / "out")]
    line += ["--backbone", str(backbone), "--bottleneck", "12", "--max-length", "24", "--lr", "0.02", "--epochs", "1"]
    line += ["--dtype", "float32", "--probe", "--first-layer", "1"]
    assert cli.main(line) == 0
    return {"root": root, "out": root / "out", "line": line}


def written(places) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in places["out"].rglob("*") if path.is_file()}


def test_each_adapter_has_the_folder_that_train_writes(places) -> None:
    for name, bottleneck in (("weather", 24), ("pairs", 12)):
        folder = places["out"] / name
        assert Adapter.from_folder(folder).config.adakron.bottleneck == bottleneck
        found = json.loads((folder / "eval_results.json").read_text())
        assert set(found) >= {"adapter", "linear_probe", "date", "metric"}
        assert "It was trained beside 1 other by `adakron train-many`" in (folder / "README.md").read_text()
    assert [example.text for example in Adapter.from_folder(places["out"] / "weather").expected] == ["the good word"]
    assert "Data: Weather. 48 rows" in (places["out"] / "weather" / "README.md").read_text()


def test_what_is_finished_is_not_trained_again(places, capsys) -> None:
    before = written(places)
    assert cli.main(places["line"]) == 0
    assert written(places) == before
    said = capsys.readouterr().out
    assert f"pairs: {places['out'] / 'pairs'} holds it already" in said
    assert f"2 of 2 adapters are in {places['out']}" in said


@pytest.mark.parametrize("damage", ["weights", "results", "card", "settings", "texts"])
def test_what_is_not_whole_or_another_is_trained_again(damage: str, places, capsys) -> None:
    folder, line = places["out"] / "weather", list(places["line"])
    if damage == "weights":
        file = folder / "adapter_model.safetensors"
        file.write_bytes((places["out"] / "pairs" / file.name).read_bytes())
    elif damage in ("results", "card"):
        (folder / {"results": "eval_results.json", "card": "README.md"}[damage]).unlink()
    elif damage == "settings":
        line += ["--seed", "14"]
    else:
        (places["root"] / "texts.json").write_text(json.dumps({"examples": [{"text": "down"}]}))
    assert cli.main(line) == 0
    assert f"wrote {folder}" in capsys.readouterr().out


def test_a_failed_adapter_is_named_and_the_others_are_written(places, tmp_path, capsys, monkeypatch) -> None:
    step = Lane.step
    monkeypatch.setattr(Lane, "step", lambda of, loss: step(of, loss * (float("nan") if of.name == "pairs" else 1)))
    assert cli.main([*places["line"], "--out", str(tmp_path)]) == 1
    assert refused(capsys) == "adakron: pairs: the loss became nan in step 1 of 2"
    assert (tmp_path / "weather" / "README.md").is_file()
    assert not (tmp_path / "pairs" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected tasks; found none (name them with --data or --tasks)"),
        (["--data", "x=nowhere", "--bottleneck", "50"], "x: bottleneck"),
    ],
)
def test_refusals_are_one_line(flags, message, capsys) -> None:
    assert cli.main(["train-many", *flags]) == 1
    assert message in refused(capsys)


@pytest.mark.parametrize("value", ['lr = "fast"', "learning_rate = 1"])
def test_a_bad_setting_of_the_file_names_the_adapter(value: str, tmp_path, capsys) -> None:
    (tmp_path / "tasks.toml").write_text(f'[weather]\ndata = "d"\n{value}\n')
    assert cli.main(["train-many", "--tasks", str(tmp_path / "tasks.toml")]) == 1
    assert refused(capsys).startswith("adakron: weather: ")
