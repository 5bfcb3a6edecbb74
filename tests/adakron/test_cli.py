import dataclasses
import json

import pytest
import torch

from adakron import cli
from adakron.artefact import Adapter
from adakron.config import Calibration
from tests.adakron.training.labelled import save_backbone, save_task, single_rows, write_jsonl


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny backbone, a small task and an adapter trained on it through the command line."""
    torch.set_num_threads(1)  # models this small lose more to waking threads than they win
    root = tmp_path_factory.mktemp("cli")
    backbone, data, out = save_backbone(root / "tiny-bert"), save_task(root / "weather", "single", 48, 16), root / "out"
    about = root / "about.json"
    about.write_text(json.dumps({"dataset": "Weather", "licence": "CC0 1.0"}))
    examples = root / "texts.json"
    examples.write_text(json.dumps({"examples": [{"text": "the good word", "text_pair": None}]}))
    line = ["train", "--name", "weather", "--data", str(data), "--backbone", str(backbone), "--bottleneck", "12"]
    line += ["--max-length", "24", "--lr", "0.02", "--epochs", "1", "--dtype", "float32", "--baselines"]
    line += ["--full-epochs", "1", "--about", str(about), "--examples", str(examples), "--out", str(out)]
    assert cli.main(line) == 0
    return {"backbone": str(backbone), "data": str(data), "out": out, "root": root}


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("adakron: ")
    return lines[0]


def test_train_writes_the_whole_folder(places) -> None:
    adapter = Adapter.from_folder(places["out"])
    assert [example.text for example in adapter.expected] == ["the good word"]
    found = json.loads((places["out"] / "eval_results.json").read_text())
    assert set(found) >= {"adapter", "full_fine_tuning", "linear_probe", "date", "metric", "calibration"}
    assert adapter.config.calibration.temperature == found["calibration"]["temperature"]
    assert adapter.sha256 == found["adapter"]["sha256"]
    assert "Data: Weather. 48 rows" in (places["out"] / "README.md").read_text()


def test_train_like_repeats_the_run_bit_for_bit(places) -> None:
    again = places["root"] / "again"
    line = ["train", "--like", str(places["out"]), "--data", places["data"], "--out", str(again)]
    assert cli.main(line) == 0
    assert Adapter.from_folder(again).sha256 == Adapter.from_folder(places["out"]).sha256


def test_a_flag_beside_like_wins(places) -> None:
    other = places["root"] / "other"
    line = ["train", "--like", str(places["out"]), "--data", places["data"], "--out", str(other), "--pooling", "cls"]
    assert cli.main(line) == 0
    config = Adapter.from_folder(other).config
    assert (config.pooling, config.bottleneck, config.max_length) == ("cls", 12, 24)


def test_dry_run_prints_the_data_and_writes_nothing(places, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    line = ["train", "--data", places["data"], "--backbone", places["backbone"], "--max-length", "24", "--dry-run"]
    assert cli.main([*line, "--out", str(out)]) == 0
    assert "rows: 48 train, 16 validation (a split of its own)" in capsys.readouterr().out
    assert not out.exists()


def test_eval_prints_the_scores_of_the_engine(places, capsys) -> None:
    line = ["eval", str(places["out"]), "--data", places["data"], "--backbone", places["backbone"]]
    assert cli.main([*line, "--dtype", "float32", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((places["out"] / "eval_results.json").read_text())["adapter"]["scores"]
    assert found["rows"] == 16
    assert found["scores"] == pytest.approx(kept, abs=1e-4)


def test_eval_refuses_labels_that_the_adapter_lacks(places, tmp_path, capsys) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "warm"}, {"text": "b", "label": "windy"}])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": "warm"}, {"text": "b", "label": "windy"}])
    assert cli.main(["eval", str(places["out"]), "--data", str(tmp_path), "--backbone", places["backbone"]]) == 1
    assert "'windy' is none of the adapter's 2" in refused(capsys)


def test_eval_refuses_another_backbone(places, tmp_path, capsys) -> None:
    other = save_backbone(tmp_path / "tiny-roberta", "roberta")
    assert cli.main(["eval", str(places["out"]), "--data", places["data"], "--backbone", str(other)]) == 1
    refused(capsys)


def test_calibrate_writes_a_new_artefact_with_its_records(places, tmp_path, capsys) -> None:
    line = ["calibrate", str(places["out"]), "--data", places["data"], "--backbone", places["backbone"]]
    assert cli.main([*line, "--abstain-below", "0.6", "--out", str(tmp_path / "sure")]) == 0
    before, after = Adapter.from_folder(places["out"]), Adapter.from_folder(tmp_path / "sure")
    assert after.config.calibration.threshold == 0.6
    assert after.config.calibration.temperature == before.config.calibration.temperature  # training had fitted it
    assert (before.config.calibration.threshold, before.expected) == (None, after.expected)
    kept = json.loads((tmp_path / "sure" / "eval_results.json").read_text())
    assert kept["adapter"]["sha256"] == after.sha256
    card = (tmp_path / "sure" / "README.md").read_text()
    assert "withholds those below 0.6 by itself" in card
    assert "--abstain-below 0.6" in card
    assert after.sha256 in capsys.readouterr().out


def test_calibrate_in_place_needs_no_more_than_the_artefact(places, tmp_path) -> None:
    Adapter.from_folder(places["out"]).write(tmp_path)
    line = ["calibrate", str(tmp_path), "--data", places["data"], "--backbone", places["backbone"]]
    assert cli.main([*line, "--abstain-below", "0.7"]) == 0
    assert Adapter.from_folder(tmp_path).config.calibration.threshold == 0.7
    assert not (tmp_path / "README.md").exists()


def test_calibrate_refuses_another_backbone_and_a_threshold_out_of_bounds(places, tmp_path, capsys) -> None:
    other = save_backbone(tmp_path / "tiny-roberta", "roberta")
    line = ["calibrate", str(places["out"]), "--data", places["data"], "--out", str(tmp_path / "none"), "--backbone"]
    assert cli.main([*line, str(other)]) == 1
    assert "made for" in refused(capsys)
    assert cli.main([*line, places["backbone"], "--abstain-below", "1"]) == 1
    assert "calibration.threshold" in refused(capsys)
    assert not (tmp_path / "none").exists()


def test_train_stores_the_threshold_and_repeats_it(places, tmp_path) -> None:
    line = ["train", "--like", str(places["out"]), "--data", places["data"], "--abstain-below", "0.75"]
    assert cli.main([*line, "--out", str(tmp_path / "shy")]) == 0
    assert Adapter.from_folder(tmp_path / "shy").config.calibration.threshold == 0.75
    assert json.loads((tmp_path / "shy" / "training_args.json").read_text())["recipe"]["abstain_below"] == 0.75


def test_a_regression_has_no_label_to_withhold(tmp_path, capsys) -> None:
    data = save_task(tmp_path / "value", "value", 12, 6)
    assert cli.main(["train", "--data", str(data), "--abstain-below", "0.5", "--dry-run"]) == 1
    assert "a regression gives a value" in refused(capsys)


def test_a_task_file_is_kept_beside_the_adapter(places, tmp_path) -> None:
    task = tmp_path / "made.json"
    task.write_text(json.dumps({"sources": [{"data": places["data"], "labels": {"warm": "mild", "cold": "harsh"}}]}))
    out = tmp_path / "out"
    assert cli.main(["train", "--like", str(places["out"]), "--data", str(task), "--out", str(out)]) == 0
    assert Adapter.from_folder(out).config.label_names == ("harsh", "mild")
    assert (out / "task.json").read_text() == task.read_text()
    again = ["train", "--like", str(out), "--data", str(out / "task.json"), "--out", str(out)]
    sha256 = Adapter.from_folder(out).sha256
    assert cli.main(again) == 0
    assert Adapter.from_folder(out).sha256 == sha256


def test_zoo_writes_cards_and_table(places, tmp_path, capsys) -> None:
    import shutil

    shutil.copytree(places["out"], tmp_path / "weather", ignore=shutil.ignore_patterns("README.md", "baselines"))
    (tmp_path / "README.md").write_text("<!-- table -->\n<!-- /table -->\n")
    assert cli.main(["zoo", str(tmp_path)]) == 0
    assert "[weather](weather/README.md) | Weather" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "weather" / "README.md").read_text() == (places["out"] / "README.md").read_text()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_inspect_tells_how_scores_are_made(places, tmp_path, capsys) -> None:
    adapter = Adapter.from_folder(places["out"])
    config = dataclasses.replace(adapter.config, calibration=Calibration(1.25, 0.6))
    Adapter.build(config, adapter.tensors).write(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "scores    of logits / temperature 1.25; no label below 0.6" in capsys.readouterr().out


def test_inspect_prints_a_table(places, capsys) -> None:
    assert cli.main(["inspect", str(places["out"])]) == 0
    assert "labels    2: cold, warm" in capsys.readouterr().out


def test_inspect_prints_json(places, capsys) -> None:
    assert cli.main(["inspect", str(places["out"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["cold", "warm"]


def test_inspect_of_a_bad_file_says_why_in_one_line(tmp_path, capsys) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x80\x02}q\x00.")
    assert cli.main(["inspect", str(path)]) == 1
    line = refused(capsys)
    assert "found a pickle" in line
    assert "(convert the checkpoint to safetensors" in line


def test_bad_data_is_one_line_with_file_and_line(places, tmp_path, capsys) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*single_rows(3, seed=1), {"text": "", "label": "warm"}])
    assert cli.main(["train", "--data", str(tmp_path), "--backbone", places["backbone"]]) == 1
    assert "train.jsonl:4: text is empty" in refused(capsys)


def test_a_setting_out_of_bounds_is_one_line(places, capsys) -> None:
    assert cli.main(["train", "--data", places["data"], "--bottleneck", "50"]) == 1
    assert "bottleneck" in refused(capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "expected a JSON object"), ('{"examples": [5]}', "expected examples with text")],
)
def test_a_bad_examples_file_is_one_line(content: str, message: str, places, tmp_path, capsys) -> None:
    path = tmp_path / "texts.json"
    path.write_text(content)
    assert cli.main(["train", "--data", places["data"], "--examples", str(path)]) == 1
    assert message in refused(capsys)


def test_a_missing_about_file_is_one_line(places, tmp_path, capsys) -> None:
    assert cli.main(["train", "--data", places["data"], "--about", str(tmp_path / "none.json")]) == 1
    assert "none.json: No such file" in refused(capsys)


def test_an_interrupted_verb_returns_130(capsys) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    assert cli.run(interrupted, cli.argparse.Namespace()) == 130
    assert "interrupted" in refused(capsys)


def test_a_missing_training_package_is_one_line(capsys) -> None:
    def verb(_: object) -> int:
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")

    assert cli.run(verb, cli.argparse.Namespace()) == 1
    assert 'pip install "adakron[train]"' in refused(capsys)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["train"],
        ["eval"],
        ["calibrate"],
        ["inspect"],
        ["zoo"],
        ["translate"],
        ["train", "--data", "x", "--pooling", "max"],
    ],
)
def test_wrong_usage_exits_with_2(line: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(line)
    assert caught.value.code == 2


@pytest.mark.parametrize("verb", [[], ["train"], ["eval"], ["calibrate"], ["inspect"], ["zoo"]])
def test_help_exits_with_0(verb: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*verb, "--help"])
    assert caught.value.code == 0
    assert "usage: adakron" in capsys.readouterr().out


def test_every_setting_has_a_flag_with_help() -> None:
    from dataclasses import fields

    from adakron.training.recipe import Recipe

    assert {item.name for item in fields(Recipe)} == set(cli._RECIPE_HELP)
