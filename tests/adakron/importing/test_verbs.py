"""`adakron import` and `adakron to-peft`, as a person types them."""

import json
from pathlib import Path

import pytest

from adakron import Adapter, Backbone
from adakron.cli import main
from tests.adakron.importing.written import make, save
from tests.adakron.training.labelled import save_backbone
from tests.tiny import tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("base") / "tiny-bert")


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as their trainer leaves it."""
    folder = tmp_path_factory.mktemp("model")
    save(make(Backbone.load(str(base)), "GLUE", experts=2, labels=2), folder / "pytorch_model.bin")
    return folder


def test_checkpoint_becomes_an_artefact_and_what_was_not_used_is_said(
    checkpoint: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["import", str(checkpoint), "--base", str(base), "--labels", "no,yes", "--max-length", "32"]
    assert main([*words, "--out", str(tmp_path / "made")]) == 0
    said = capsys.readouterr().out
    frozen = len(tiny_backbone("bert").model.state_dict())
    assert "GLUE code: r = 12, order a2_a1, experts averaged: 2" in said
    assert f"not used: {frozen} tensors of the frozen encoder, equal to those of {base}" in said
    assert "not used: embeddings.position_ids" in said
    adapter = Adapter.from_folder(tmp_path / "made")
    assert adapter.sha256 in said
    assert (adapter.config.label_names, adapter.config.max_length) == (("no", "yes"), 32)
    state = make(Backbone.load(str(base)), "GLUE", experts=2, labels=2)
    monkeypatch.setattr("adakron.importing.checkpoint.read_checkpoint", lambda path: state)  # a child takes seconds
    assert main([*words, "--out", str(tmp_path / "again"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sha256"] == adapter.sha256
    assert len(facts["unused"]) == frozen + 1


@pytest.mark.parametrize("missing", ["--base", "--labels"])
def test_what_a_checkpoint_does_not_say_must_be_said(
    missing: str, checkpoint: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--base": str(base), "--labels": "no,yes"}
    del given[missing]
    words = [word for pair in given.items() for word in pair]
    assert main(["import", str(checkpoint), "--out", str(tmp_path / "made"), *words]) == 1
    assert f"{missing}: a checkpoint does not say it" in capsys.readouterr().err


def test_artefact_goes_to_peft_and_comes_back_to_the_byte(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tiny_adapter(tiny_backbone("bert"))
    adapter.write(tmp_path / "mine")
    assert main(["to-peft", str(tmp_path / "mine"), str(tmp_path / "theirs"), "--base", str(base)]) == 0
    assert main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "back")]) == 0
    assert adapter.sha256 in capsys.readouterr().out
    written = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("mine", "back")]
    assert written[0] == written[1]
    assert main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "back"), "--labels", "a,b"]) == 1
    assert "--labels: the folder itself says it" in capsys.readouterr().err


def test_adapter_of_a_named_random_backbone_needs_no_base(tmp_path: Path) -> None:
    plain = tiny_adapter(tiny_backbone("bert"))
    config = plain.config.to_dict() | {"base_model_name_or_path": "random:tiny"}
    adapter = Adapter.build(type(plain.config).from_dict(config), plain.tensors)
    adapter.write(tmp_path / "mine")
    assert main(["to-peft", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 0
    assert "bert" in json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["target_modules"]


def test_base_that_leads_nowhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_adapter(tiny_backbone("bert")).write(tmp_path / "mine")
    assert main(["to-peft", str(tmp_path / "mine"), str(tmp_path / "theirs"), "--base", "/no/such"]) == 1
    assert "cannot read the configuration of '/no/such'" in capsys.readouterr().err
