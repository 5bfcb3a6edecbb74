import json

import pytest

from adakron.errors import DataError
from adakron.training.calibration import Measured
from adakron.training.data import load_task
from adakron.training.loop import Outcome
from adakron.training.recipe import Recipe
from adakron.training.records import About, results, settings, write_folder
from adakron.training.run import Trained
from adakron.training.zoo import write_zoo
from tests.tiny import Example, tiny_adapter, tiny_backbone

PAGE = "# Adapters\n\nbefore\n\n<!-- table -->\n<!-- /table -->\n\nafter\n"
BASELINES = {
    "linear_probe": {"scores": {"accuracy": 0.7}},
    "full_fine_tuning": {"scores": {"accuracy": 0.9}, "lr": 1e-4, "epochs": 3, "parameters": 12345},
}


@pytest.fixture
def zoo(tmp_path, task_folder):
    data, backbone = load_task(str(task_folder("single"))), tiny_backbone()
    for number, name in enumerate(("weather", "air")):
        adapter = tiny_adapter(backbone, ["cold", "warm"], seed=number, expected=[Example("the day", None, (0.0, 1.0))])
        trained = Trained(adapter, {"accuracy": 0.875}, Outcome(4, 3, 0.9), 12.3)
        measured = Measured(32, 1.0, 0.08, 0.04, 0.4, 0.3, ()) if name == "weather" else None
        about = About(dataset="Weather", licence="CC BY 4.0", licence_id="cc-by-4.0")
        found = results(trained, data, "accuracy", BASELINES if name == "weather" else {}, measured)
        write_folder(tmp_path / name, trained, settings(Recipe(name, bottleneck=12), about, data), found)
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def test_the_table_has_a_line_for_each_adapter(zoo) -> None:
    write_zoo(zoo)
    lines = (zoo / "README.md").read_text().split("<!-- table -->\n")[1].split("\n<!-- /table -->")[0].splitlines()
    size = f"{(zoo / 'air' / 'adapter_model.safetensors').stat().st_size / 1e6:.2f} MB"
    assert lines[2:] == [
        f"| [air](air/README.md) | Weather | text | 2 | accuracy | 0.875 |  |  |  | cc-by-4.0 | {size} |",
        "| [weather](weather/README.md) | Weather | text | 2 | accuracy | 0.875 | 0.900 | 0.700 | 0.080 → 0.040 | "
        f"cc-by-4.0 | {size} |",
    ]


def test_what_is_around_the_table_stays_and_writing_again_changes_nothing(zoo) -> None:
    write_zoo(zoo)
    once = (zoo / "README.md").read_text()
    assert once.startswith("# Adapters\n\nbefore\n\n<!-- table -->\n")
    assert once.endswith("\n<!-- /table -->\n\nafter\n")
    write_zoo(zoo)
    assert (zoo / "README.md").read_text() == once


def test_every_card_is_written(zoo) -> None:
    assert [path.parent.name for path in write_zoo(zoo)] == ["air", "weather", zoo.name]
    assert (zoo / "air" / "README.md").read_text().startswith("---\n")


def test_a_page_without_a_place_for_the_table_is_refused(zoo) -> None:
    (zoo / "README.md").write_text("# Adapters\n")
    with pytest.raises(DataError, match="expected the lines <!-- table -->"):
        write_zoo(zoo)


def test_a_folder_without_adapters_is_refused(tmp_path) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    with pytest.raises(DataError, match="no adapters here"):
        write_zoo(tmp_path)


def test_results_without_a_metric_of_the_baseline_leave_its_cell_empty(zoo) -> None:
    path = zoo / "weather" / "eval_results.json"
    found = json.loads(path.read_text())
    del found["linear_probe"]
    path.write_text(json.dumps(found))
    write_zoo(zoo)
    assert "| 0.875 | 0.900 |  | 0.080" in (zoo / "README.md").read_text()
