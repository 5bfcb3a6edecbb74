"""The backbone: the right bytes or none, whole or none, and a fingerprint that sees every difference."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from adakron import Backbone
from adakron import backbone as backbone_module
from adakron.backbone import DEFAULT_NAME, DEFAULT_PACKAGE, DEFAULT_REVISION, fingerprint
from adakron.errors import BackboneError
from tests.tiny import FAMILIES, HIDDEN, LAYERS, MAX_POSITIONS, tiny_backbone, tiny_tokenizer

# The default backbone's fingerprint: every adapter made for it records these, so they must never change.
DEFAULT_CONFIG_SHA256 = "7726ae30a20ffddc6c39ef03278d8af4af62ce50f8c6575bad1b7a51bee3c0c7"
DEFAULT_WEIGHTS_SHA256 = "093978bbcc6b25e7258954847adac30772ae8c51b05b9e4e66f47661ead61d88"
DEFAULT_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")


def save(backbone: Backbone, folder: Path) -> Path:
    """A checkpoint folder as transformers writes it, with a tokenizer.json."""
    backbone.model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(backbone.tokenizer.to_str(), encoding="utf-8")
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(name: str | Path) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        Backbone.load(str(name))
    return caught.value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_backbone("bert"), tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A good checkpoint folder, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


# The default.


@pytest.fixture(scope="module")
def default() -> Backbone:
    return Backbone.load()


def test_default_is_minilm_of_the_pinned_revision(default: Backbone) -> None:
    assert (default.name, default.revision) == (DEFAULT_NAME, DEFAULT_REVISION)
    assert (default.model_type, default.hidden_size, default.num_hidden_layers) == ("bert", 384, 6)
    assert (default.max_length, default.pooler is not None) == (512, True)


def test_default_fingerprint_is_the_one_that_adapters_record(default: Backbone) -> None:
    assert default.fingerprint.config_sha256 == DEFAULT_CONFIG_SHA256
    assert default.fingerprint.weights_sha256 == DEFAULT_WEIGHTS_SHA256
    assert default.fingerprint.tokenizer_sha256 == DEFAULT_TOKENIZER_SHA256


def test_default_is_frozen_and_in_eval_mode(default: Backbone) -> None:
    assert not default.model.training
    assert not any(parameter.requires_grad for parameter in default.model.parameters())


def bundle() -> Path:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE.replace("-", "_"))
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def test_default_tokenizer_neither_cuts_at_128_nor_pads_though_its_file_says_so(default: Backbone) -> None:
    written = json.loads((bundle() / "tokenizer.json").read_text())
    assert written["truncation"]["max_length"] == 128
    assert written["padding"] is not None
    encodings = default.tokenizer.encode_batch(["word", "word " * 300])
    assert [len(encoding.ids) for encoding in encodings] == [3, 302]
    assert default.tokenizer.truncation is None
    assert default.tokenizer.padding is None


def test_default_named_as_a_folder_is_the_same_backbone(default: Backbone) -> None:
    assert Backbone.load(str(bundle())).fingerprint == default.fingerprint


def test_default_with_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "DEFAULT_SHA256", "0" * 64)
    error = refusal("default")
    real = hashlib.sha256((bundle() / "model.safetensors").read_bytes()).hexdigest()
    assert real in str(error)
    assert "0" * 64 in str(error)
    assert error.hint is not None
    assert "--force-reinstall" in error.hint


def fake_package(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """A package in the place of the default's; importing it would fail."""
    package = root / "fake_minilm_bundle"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(backbone_module, "DEFAULT_PACKAGE", "fake-minilm-bundle")
    return package


def test_default_is_loaded_without_importing_its_package_and_refused_with_one_byte_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    shutil.copytree(folder, fake_package(monkeypatch, tmp_path) / "model")
    weights = tmp_path / "fake_minilm_bundle" / "model" / "model.safetensors"
    data = weights.read_bytes()
    monkeypatch.setattr(backbone_module, "DEFAULT_SHA256", hashlib.sha256(data).hexdigest())
    assert Backbone.load().name == DEFAULT_NAME
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "expected sha256" in str(refusal("default"))


def test_default_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, tmp_path)
    assert "no file" in str(refusal("default"))


def test_default_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbone_module, "DEFAULT_PACKAGE", "no-such-package-anywhere")
    error = refusal("default")
    assert "not installed" in str(error)
    assert error.hint is not None
    assert "pip install no-such-package-anywhere" in error.hint


# Folders.


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_the_backbone_that_was_saved(family: str, tmp_path: Path) -> None:
    memory = tiny_backbone(family)
    loaded = Backbone.load(str(save(memory, tmp_path / "my-encoder")))
    assert loaded.fingerprint == memory.fingerprint
    assert (loaded.name, loaded.revision, loaded.model_type) == ("my-encoder", None, family)
    assert (loaded.hidden_size, loaded.num_hidden_layers) == (HIDDEN, LAYERS)
    assert (loaded.max_length, loaded.pooler is None) == (memory.max_length, memory.pooler is None)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = torch.tensor([loaded.tokenizer.encode("the people found a new place").ids])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).last_hidden_state, memory.model(ids).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_max_length_counts_the_positions_that_a_token_can_have(family: str) -> None:
    reserved = 2 if family in ("roberta", "xlm-roberta") else 0
    backbone = tiny_backbone(family)
    assert backbone.max_length == MAX_POSITIONS - reserved
    with torch.no_grad():
        backbone.model(torch.full((1, backbone.max_length), 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folder_is_loaded_in_its_own_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    memory = tiny_backbone()
    full = memory.fingerprint
    memory.model.to(dtype)
    loaded = Backbone.load(str(save(memory, tmp_path / "half")))
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {dtype}
    assert loaded.fingerprint.weights_sha256 != full.weights_sha256


def without(*prefixes: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        doomed = [name for name in tensors if name.startswith(prefixes)]
        assert doomed
        for name in doomed:
            del tensors[name]

    return change


@pytest.mark.parametrize("prefix", ["pooler.", "pooler.dense.bias"])
def test_checkpoint_without_a_whole_pooler_has_none(folder: Path, prefix: str) -> None:
    assert Backbone.load(str(folder)).pooler is not None
    edit_weights(folder, without(prefix))
    loaded = Backbone.load(str(folder))
    assert loaded.pooler is None
    assert loaded.fingerprint == tiny_backbone().fingerprint


@pytest.mark.parametrize(
    "name", ["encoder.layer.1.output.dense.bias", "embeddings.LayerNorm.weight", "embeddings.word_embeddings.weight"]
)
def test_checkpoint_that_lacks_a_tensor_of_the_encoder_is_refused_naming_it(folder: Path, name: str) -> None:
    edit_weights(folder, without(name))
    error = refusal(folder)
    assert name in str(error)
    assert "lacks 1 tensors" in str(error)


def test_checkpoint_with_fewer_layers_than_its_config_says_is_refused(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=LAYERS + 1)
    assert f"encoder.layer.{LAYERS}." in str(refusal(folder))


def test_checkpoint_with_a_task_head_gives_the_bare_encoder(folder: Path) -> None:
    def wrap(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)
        tensors["classifier.weight"] = torch.ones(2, HIDDEN)

    edit_weights(folder, wrap)
    loaded = Backbone.load(str(folder))
    assert type(loaded.model).__name__ == "BertModel"
    assert loaded.fingerprint == tiny_backbone().fingerprint


def spoil(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


SPOILT = {
    "no config": remove("config.json"),
    "config is no JSON": spoil("config.json", b"{]"),
    "config of an unknown type": lambda folder: edit_config(folder, model_type="nonsense"),
    "config of other sizes": lambda folder: edit_config(folder, hidden_size=HIDDEN + 4),
    "no weights": remove("model.safetensors"),
    "weights cut short": spoil("model.safetensors", b"\x08\0\0\0\0\0\0\0{"),
    "weights are a pickle": spoil("model.safetensors", b"\x80\x04."),
    "no tokenizer": remove("tokenizer.json"),
    "tokenizer is no JSON": spoil("tokenizer.json", b"{]"),
    "tokenizer is no UTF-8": spoil("tokenizer.json", b"\xff\xfe"),
    "tokenizer is some other JSON": spoil("tokenizer.json", b'{"version": "1.0"}'),
}


@pytest.mark.parametrize("how", list(SPOILT))
def test_spoilt_folder_is_refused_in_one_sentence(folder: Path, how: str) -> None:
    SPOILT[how](folder)
    error = refusal(folder)
    assert str(folder) in str(error)
    assert "\n" not in str(error)
    assert error.hint


def test_folder_with_pickled_weights_alone_is_refused_and_they_are_never_opened(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return canary.touch, ()

    (folder / "model.safetensors").unlink()
    torch.save({"weights": Attack()}, folder / "pytorch_model.bin")
    assert "model.safetensors" in str(refusal(folder))
    assert not canary.exists()


def test_code_beside_a_checkpoint_is_never_run(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    classes = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModel": "modeling_evil.EvilModel"}
    edit_config(folder, model_type="evil", auto_map=classes)
    refusal(folder)
    assert not canary.exists()


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "albert"])
def test_unsupported_family_is_refused_by_name_before_its_weights_are_read(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").unlink()
    error = refusal(folder)
    assert repr(model_type) in str(error)
    assert error.hint is not None
    assert "roberta" in error.hint


@pytest.mark.parametrize("name", ["nobody/nothing-here", "/no/such/folder", "a b c", ""])
def test_name_that_leads_nowhere_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.chdir(tmp_path)
    error = refusal(name)
    assert repr(name) in str(error)
    assert error.hint


def test_vocabulary_file_of_older_checkpoints_becomes_the_tokenizer(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = Backbone.load(str(folder)).tokenizer
    assert tokenizer.encode("the people").tokens == ["[CLS]", "the", "people", "[SEP]"]
    assert tokenizer.token_to_id("people") == words["people"]


# In memory.


def test_from_model_freezes_and_puts_in_eval_mode() -> None:
    model = tiny_backbone().model.train().requires_grad_(True)
    backbone = Backbone.from_model(model, tiny_tokenizer(), "mine")
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_from_model_switches_truncation_and_padding_off() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    backbone = Backbone.from_model(tiny_backbone().model, tokenizer, "mine")
    assert len(backbone.tokenizer.encode("the people found a new place").ids) == 8


def test_from_model_can_say_that_the_pooler_is_not_the_checkpoints() -> None:
    model = tiny_backbone().model
    assert Backbone.from_model(model, tiny_tokenizer(), "mine").pooler is model.pooler
    assert Backbone.from_model(model, tiny_tokenizer(), "mine", has_pooler=False).pooler is None


# The fingerprint.

TOKENIZER_JSON = b'{"version": "1.0"}'


def test_fingerprint_is_the_written_recipe() -> None:
    model = tiny_backbone().model
    digest = hashlib.sha256()
    for name in sorted(model.state_dict()):
        if not name.startswith("pooler."):
            tensor = model.state_dict()[name]
            shape = "(" + ", ".join(str(size) for size in tensor.shape) + ("," if tensor.dim() == 1 else "") + ")"
            digest.update(f"{name}\0torch.float32\0{shape}\0".encode() + tensor.numpy().tobytes())
    found = fingerprint(model, TOKENIZER_JSON)
    assert found.weights_sha256 == digest.hexdigest()
    assert found.tokenizer_sha256 == hashlib.sha256(TOKENIZER_JSON).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_weight_changed_anywhere_changes_the_weights_digest_alone(family: str) -> None:
    model = tiny_backbone(family).model
    before = fingerprint(model, TOKENIZER_JSON)
    for name, tensor in model.state_dict().items():
        if name.startswith("pooler."):
            continue
        last = tensor.view(-1)[-1:]
        kept = last.clone()
        last.copy_(torch.nextafter(kept, kept + 1))
        after = fingerprint(model, TOKENIZER_JSON)
        last.copy_(kept)
        assert after.weights_sha256 != before.weights_sha256, name
        assert (after.config_sha256, after.tokenizer_sha256) == (before.config_sha256, before.tokenizer_sha256)
    assert fingerprint(model, TOKENIZER_JSON) == before


def test_two_tensors_exchanged_change_the_weights_digest() -> None:
    model = tiny_backbone().model
    before = fingerprint(model, TOKENIZER_JSON)
    first, second = (model.get_parameter(f"encoder.layer.{n}.attention.self.query.weight") for n in (0, 1))
    with torch.no_grad():
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    assert fingerprint(model, TOKENIZER_JSON).weights_sha256 != before.weights_sha256


def test_dtype_changes_the_weights_digest() -> None:
    model = tiny_backbone().model
    before = fingerprint(model, TOKENIZER_JSON)
    assert fingerprint(model.half(), TOKENIZER_JSON).weights_sha256 != before.weights_sha256


def test_pooler_and_position_ids_change_nothing() -> None:
    model = tiny_backbone().model
    before = fingerprint(model, TOKENIZER_JSON)
    with torch.no_grad():
        model.pooler.dense.weight.add_(1)
    model.embeddings.register_buffer("position_ids", torch.arange(9), persistent=True)
    assert any(name.endswith("position_ids") for name in model.state_dict())
    assert fingerprint(model, TOKENIZER_JSON) == before
    model.pooler = None
    assert fingerprint(model, TOKENIZER_JSON) == before


def test_tokenizer_changes_the_tokenizer_digest_alone() -> None:
    model = tiny_backbone().model
    before, after = fingerprint(model, TOKENIZER_JSON), fingerprint(model, TOKENIZER_JSON + b"\n")
    assert after.tokenizer_sha256 != before.tokenizer_sha256
    assert (after.config_sha256, after.weights_sha256) == (before.config_sha256, before.weights_sha256)


def test_one_added_word_changes_the_tokenizer_digest() -> None:
    other = Tokenizer.from_str(tiny_tokenizer().to_str())
    other.add_tokens(["zyx"])
    model = tiny_backbone().model
    digests = {
        Backbone.from_model(model, tokenizer, "x").fingerprint.tokenizer_sha256
        for tokenizer in (tiny_tokenizer(), other)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("bert", "layer_norm_eps", 1e-5),
        ("bert", "hidden_act", "relu"),
        ("bert", "num_attention_heads", 5),
        ("bert", "pad_token_id", 1),
        ("distilbert", "activation", "relu"),
        ("distilbert", "sinusoidal_pos_embds", True),
        ("deberta-v2", "position_buckets", 4),
        ("deberta-v2", "pos_att_type", ["c2p"]),
        ("deberta-v2", "share_att_key", False),
        ("modernbert", "local_attention", 16),
        ("modernbert", "layer_types", ["full_attention"] * LAYERS),
        ("modernbert", "hidden_activation", "relu"),
        ("modernbert", "norm_eps", 1e-4),
    ],
)
def test_architecture_field_changes_the_config_digest_alone(family: str, field: str, value: Any) -> None:
    model = tiny_backbone(family).model
    before = fingerprint(model, TOKENIZER_JSON)
    assert getattr(model.config, field) != value
    setattr(model.config, field, value)
    after = fingerprint(model, TOKENIZER_JSON)
    assert after.config_sha256 != before.config_sha256
    assert (after.weights_sha256, after.tokenizer_sha256) == (before.weights_sha256, before.tokenizer_sha256)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob", "num_labels"])
def test_field_that_changes_no_answer_changes_no_digest(field: str) -> None:
    model = tiny_backbone().model
    before = fingerprint(model, TOKENIZER_JSON)
    setattr(model.config, field, type(getattr(model.config, field))(7))
    assert fingerprint(model, TOKENIZER_JSON) == before


def test_name_of_the_folder_is_no_part_of_the_fingerprint(saved: Path, folder: Path) -> None:
    moved = folder.rename(folder.parent / "another name")
    assert Backbone.load(str(moved)).fingerprint == Backbone.load(str(saved)).fingerprint
