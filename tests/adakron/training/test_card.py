import dataclasses
import json

import pytest

from adakron.artefact import Adapter
from adakron.config import Calibration
from adakron.errors import ConfigError, DataError
from adakron.training.calibration import Measured
from adakron.training.card import command, write_card
from adakron.training.data import load_task
from adakron.training.loop import Outcome
from adakron.training.recipe import Recipe
from adakron.training.records import (
    About,
    calibration_record,
    read_results,
    read_settings,
    results,
    settings,
    write_folder,
)
from adakron.training.run import Trained
from tests.tiny import Example, tiny_adapter, tiny_backbone

ABOUT = About(
    does="Tells warm from cold.",
    dataset='The "Weather" set',
    dataset_id="owner/weather",
    licence="CC BY 4.0",
    licence_id="cc-by-4.0",
    citation="Somebody 2020.",
)


@pytest.fixture
def folder(tmp_path, task_folder):
    adapter = tiny_adapter(tiny_backbone(), ["cold", "warm"], expected=[Example("it's a good day", None, (0.25, -0.5))])
    data = load_task(str(task_folder("single")))
    recipe = Recipe("weather", bottleneck=12, lr=3e-3)
    trained = Trained(adapter, {"accuracy": 0.875, "macro_f1": 0.87}, Outcome(4, 3, 0.9), 12.3)
    baselines = {
        "linear_probe": {"scores": {"accuracy": 0.7, "macro_f1": 0.6}},
        "full_fine_tuning": {
            "scores": {"accuracy": 0.9, "macro_f1": 0.89},
            "lr": 1e-4,
            "epochs": 3,
            "parameters": 12345,
        },
    }
    target = tmp_path / "weather"
    write_folder(target, trained, settings(recipe, ABOUT, data), results(trained, data, "accuracy", baselines))
    write_card(target)
    return target


def test_the_folder_holds_every_file(folder) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "eval_results.json",
        "expected.json",
        "training_args.json",
    }


def test_the_front_matter_is_yaml_that_hubs_read(folder) -> None:
    import yaml

    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front["library_name"] == "adakron"
    assert front["base_model"] == "tiny-bert"
    assert front["license"] == "cc-by-4.0"
    assert front["datasets"] == ["owner/weather"]
    entry = front["model-index"][0]["results"][0]
    assert entry["dataset"] == {"name": 'The "Weather" set', "type": "owner/weather", "split": "validation"}
    assert {metric["type"]: metric["value"] for metric in entry["metrics"]} == {"accuracy": 0.875, "macro_f1": 0.87}


def test_the_card_compares_the_three_scores(folder) -> None:
    assert "| accuracy | 0.8750 | 0.9000 | 0.7000 |" in (folder / "README.md").read_text()


def test_the_card_s_call_is_a_shell_word_and_json(folder) -> None:
    import shlex

    block = (folder / "README.md").read_text().split("```sh\ncurl")[1].split("```")[0]
    body = shlex.split(block.replace("\\\n", ""))[-1]
    assert json.loads(body) == {"adapter": "weather", "inputs": ["it's a good day"]}


def test_the_card_s_python_compiles(folder) -> None:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert """Row(adapter="weather", text="it's a good day")""" in code


def test_settings_bring_the_recipe_back(folder) -> None:
    found = read_settings(folder)
    assert found.recipe == Recipe("weather", bottleneck=12, lr=3e-3)
    assert found.about == ABOUT
    assert found.data["train_rows"] == 96


def test_the_command_shows_what_differs_and_what_matters_most() -> None:
    recipe = Recipe("demo", train_splits=("train", "more"), metric="matthews", lr=2e-3)
    assert command(recipe, "D", "O") == (
        "adakron train --name demo --data D --bottleneck 48 --pooling mean --max-length 128 --metric matthews "
        "--train-splits train,more --lr 0.002 --epochs 5 --batch 32 --seed 13 --out O"
    )


def test_the_command_s_flags_are_those_of_the_command_line() -> None:
    import argparse

    from adakron.cli import add_train

    recipe = Recipe("demo", train_splits=("train", "more"), metric="matthews", first_layer=2, encoder_dropout=0.0)
    parser = argparse.ArgumentParser()
    add_train(parser.add_subparsers())
    parsed = vars(parser.parse_args(command(recipe, "D", "O").split()[1:]))
    given = {key.removeprefix("recipe_"): value for key, value in parsed.items() if key.startswith("recipe_")}
    assert Recipe(**given) == recipe


def test_without_baselines_the_card_has_one_column(folder) -> None:
    found = read_results(folder)
    del found["full_fine_tuning"], found["linear_probe"]
    (folder / "eval_results.json").write_text(json.dumps(found))
    write_card(folder)
    assert "| accuracy | 0.8750 |\n" in (folder / "README.md").read_text()


MEASURED = Measured(32, 1.5, 0.0812, 0.0456, 0.5, 0.4, ({"below": 0.9, "coverage": 0.75, "accuracy": 0.9583},))


def calibrated_card(folder, measured: Measured, calibration: Calibration) -> str:
    """The card of the folder's adapter with that calibration stored and measured."""
    before = Adapter.from_folder(folder)
    config = dataclasses.replace(before.config, calibration=calibration)
    Adapter.build(config, before.tensors, before.expected).write(folder)
    found = read_results(folder) | {"calibration": calibration_record(measured)}
    (folder / "eval_results.json").write_text(json.dumps(found))
    write_card(folder)
    return (folder / "README.md").read_text()


def test_without_calibration_the_card_says_nothing_of_it(folder) -> None:
    assert "alibration" not in (folder / "README.md").read_text()


def test_the_card_tells_the_error_before_and_after(folder) -> None:
    card = calibrated_card(folder, MEASURED, Calibration(1.5))
    assert "Scores are the softmax of logits / 1.5, " in card
    assert "| expected calibration error, 15 bins | 0.0812 | 0.0456 |" in card
    assert "| 0.9 | 75.0% | 95.8% |" in card
    assert "has no threshold of its own" in card


def test_the_card_tells_the_adapter_s_own_threshold(folder) -> None:
    assert "withholds those below 0.8 by itself" in calibrated_card(folder, MEASURED, Calibration(1.5, 0.8))


def test_the_card_tells_that_no_temperature_helped(folder) -> None:
    card = calibrated_card(folder, dataclasses.replace(MEASURED, temperature=1.0), Calibration())
    assert "fitted on half of the 32 validation rows did not help the other half" in card


def test_a_threshold_that_nothing_reaches_has_no_accuracy(folder) -> None:
    nothing = dataclasses.replace(MEASURED, abstention=({"below": 0.95, "coverage": 0.0, "accuracy": None},))
    assert "| 0.95 | 0.0% |  |" in calibrated_card(folder, nothing, Calibration(1.5))


def test_the_command_of_a_task_file_names_the_copy_beside_the_card(folder) -> None:
    path = folder / "training_args.json"
    path.write_text(path.read_text().replace('"task_file": false', '"task_file": true'))
    write_card(folder)
    assert "--data adapters/weather/task.json --bottleneck" in (folder / "README.md").read_text()


def test_the_card_names_the_adapter_whose_layers_it_began_with(folder) -> None:
    assert "began with the layers" not in (folder / "README.md").read_text()
    path = folder / "training_args.json"
    written = json.loads(path.read_text())
    written["recipe"]["start_from"] = "runs/seasons"
    path.write_text(json.dumps(written))
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "began with the layers of the adapter `seasons`" in card
    assert "--start-from runs/seasons" in card


def test_settings_of_a_newer_format_are_refused(folder) -> None:
    path = folder / "training_args.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(DataError, match="reads format_version 1; found 2"):
        read_settings(folder)


def test_a_folder_without_settings_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"training_args.json: cannot be read"):
        read_settings(tmp_path)


@pytest.mark.parametrize("raw", [{"licens": "MIT"}, {"licence": 5}])
def test_an_about_that_is_not_its_fields_is_refused_by_name(raw: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(raw))):
        About.from_dict(raw)
