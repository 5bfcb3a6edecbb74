"""Folders in PEFT's layout: back to the byte, with the names that PEFT itself would give."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from adakron import AdaKronConfig, Adapter, Example
from adakron.errors import AdaKronError
from adakron.families import FAMILIES as KNOWN
from adakron.families import family_named
from adakron.peft_folder import is_peft_folder, read_peft_folder, target_modules, write_peft_folder
from tests.tiny import FAMILIES, tiny_adapter, tiny_backbone


def adapter_of(family: str, **changes) -> Adapter:
    return tiny_adapter(tiny_backbone(family), ("no", "yes", "perhaps"), **changes)


@pytest.mark.parametrize("head", ["linear", "roberta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_comes_back_to_the_byte(family: str, head: str, tmp_path: Path) -> None:
    examples = [Example("the day", None, (0.5, 1.0, -1.0))]
    shape = AdaKronConfig(12, 4, "a1_a2", first_layer=1)
    adapter = adapter_of(family, head=head, adakron=shape, expected=examples)
    write_peft_folder(adapter, family, tmp_path)
    assert is_peft_folder(tmp_path)
    assert read_peft_folder(tmp_path).to_bytes() == adapter.to_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    plain = adapter_of("bert")
    adapter = Adapter.build(plain.config, {name: tensor.to(dtype) for name, tensor in plain.tensors.items()})
    write_peft_folder(adapter, "bert", tmp_path)
    assert read_peft_folder(tmp_path).sha256 == adapter.sha256


def test_artefact_is_no_peft_folder(tmp_path: Path) -> None:
    adapter_of("bert").write(tmp_path)
    assert not is_peft_folder(tmp_path)
    assert not is_peft_folder(tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_that_peft_gives_to_a_lora_on_the_same_modules(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    head = "roberta" if family in ("roberta", "xlm-roberta", "electra") else "linear"  # as transformers has it
    adapter = adapter_of(family, adakron=AdaKronConfig(12, 4, first_layer=1), head=head)
    write_peft_folder(adapter, family, tmp_path)
    wanted = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    config = CONFIG_MAPPING[family](**tiny_backbone(family).model.config.to_dict())
    model = AutoModelForSequenceClassification.from_config(config)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=wanted, modules_to_save=["classifier"])
    )
    theirs = {re.sub(r"lora_[AB]\.weight$", "", name) for name in peft.get_peft_model_state_dict(lora)}
    ours = {
        re.sub(r"adakron_\w+\.(weight|bias)$", "", name) for name in load_file(tmp_path / "adapter_model.safetensors")
    }
    layers = {name for name in theirs if "classifier" not in name}
    assert layers == {name for name in ours if "classifier" not in name}
    assert len(layers) == 2
    assert any(name.startswith("base_model.model.classifier.") for name in theirs & ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_root_is_where_transformers_keeps_the_encoder(family: str) -> None:
    assert tiny_backbone(family).model.base_model_prefix == KNOWN[family].root


def spoil_config(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def spoil_tensors(folder: Path, old: str, new: str | None) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensor = tensors.pop(old)
    save_file(tensors | ({} if new is None else {new: tensor}), file)


SITE = "base_model.model.bert.encoder.layer.0.output.dense."
SPOILT = {
    "modules of no family": (lambda f: spoil_config(f, target_modules=["query", "value"]), "target_modules"),
    "another method": (lambda f: spoil_config(f, peft_type="LORA"), "peft_type"),
    "an unknown key": (lambda f: spoil_config(f, lora_alpha=8), "lora_alpha"),
    "a LoRA tensor": (
        lambda f: spoil_tensors(f, f"{SITE}adakron_a1.weight", f"{SITE}lora_A.weight"),
        "lora_A.weight: not a tensor",
    ),
    "a tensor of another family": (
        lambda f: spoil_tensors(f, f"{SITE}adakron_a1.weight", f"{SITE}adakron_a1.weight".replace("bert", "roberta")),
        "roberta",
    ),
    "a missing tensor": (lambda f: spoil_tensors(f, f"{SITE}adakron_up.bias", None), "up.bias: missing"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "pickled tensors": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x80\x04."), "pickle"),
    "examples that do not fit": (lambda f: (f / "expected.json").write_text("{}"), "expected"),
}


@pytest.mark.parametrize("what", list(SPOILT))
def test_spoilt_folder_is_refused_by_name(what: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[what]
    write_peft_folder(adapter_of("bert"), "bert", tmp_path)
    spoil(tmp_path)
    with pytest.raises(AdaKronError) as caught:
        read_peft_folder(tmp_path)
    assert message in str(caught.value)


def test_attention_output_of_the_same_name_is_no_target() -> None:
    pattern = target_modules(family_named("bert"), adapter_of("bert").config)
    assert re.fullmatch(pattern, "bert.encoder.layer.2.output.dense")
    assert not re.fullmatch(pattern, "bert.encoder.layer.2.attention.output.dense")
    assert not re.fullmatch(pattern, "bert.encoder.layer.3.output.dense")
