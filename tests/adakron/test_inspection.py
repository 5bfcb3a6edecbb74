import json

import pytest

from adakron.errors import ConfigError, FormatError, HeaderError
from adakron.inspection import inspect, table
from tests.tiny import Example, tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def adapter():
    example = Example("the good word", None, (0.5, -0.5, 0.0))
    return tiny_adapter(tiny_backbone(), ["cold", "mild", "warm"], expected=[example])


def test_facts_of_a_file_are_json_and_true(adapter, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(adapter.to_bytes())
    facts = json.loads(json.dumps(inspect(path)))
    assert facts["sha256"] == adapter.sha256
    assert facts["size_bytes"] == path.stat().st_size
    assert facts["labels"] == ["cold", "mild", "warm"]
    assert (facts["bottleneck"], facts["factor"], facts["hidden_size"]) == (12, 4, 20)
    assert facts["golden_examples"] == 1
    assert facts["parameters"] == 3 * (3 * 21 + 4 * 21 + 20 * 13) + 3 * 21


def test_a_folder_gives_the_facts_of_its_file(adapter, tmp_path) -> None:
    adapter.write(tmp_path)
    assert inspect(tmp_path)["sha256"] == adapter.sha256


def test_the_table_cuts_many_labels(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny_adapter(tiny_backbone(), [f"l{n}" for n in range(11)]).to_bytes())
    assert "labels    11: l0, l1, l2, l3, l4, l5, l6, l7, and 3 more" in table(inspect(path)).splitlines()


def test_a_pickle_is_named(tmp_path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"PK\x03\x04" + b"0" * 100)
    with pytest.raises(HeaderError, match="found a zip archive"):
        inspect(path)


def test_a_lora_adapter_is_named(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.encoder.layer.0.query.lora_A.weight": torch.ones(2, 3)}, path)
    with pytest.raises(FormatError, match="PEFT LoRA"):
        inspect(tmp_path)


def test_a_file_cut_short_is_named(adapter, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(adapter.to_bytes()[:-10])
    with pytest.raises(HeaderError, match="cut short"):
        inspect(path)


def test_a_folder_whose_config_contradicts_the_file_is_refused(adapter, tmp_path) -> None:
    adapter.write(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"max_length": 32', '"max_length": 16'))
    with pytest.raises((FormatError, ConfigError), match="contradicts"):
        inspect(tmp_path)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        inspect(tmp_path / "nothing.safetensors")
