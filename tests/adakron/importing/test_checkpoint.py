"""The child that reads pickles: tensors come through, code does not run, and every limit holds."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from adakron.errors import FormatError
from adakron.importing.checkpoint import read_checkpoint
from adakron.importing.unpickle import RefusedError, copies


class Attack:
    """Unpickled without care, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def refusal(path: Path, **limits: Any) -> str:
    with pytest.raises(FormatError) as caught:
        read_checkpoint(path, **limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_come_through_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"whole": base, "view": base.T, "half": base.half(), "ids": torch.arange(3), "b": base.bfloat16()}
    torch.save(state, tmp_path / "x.bin")
    found = read_checkpoint(tmp_path / "x.bin")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused_and_runs_nothing(zipped: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    state = {"a.weight": torch.zeros(2), "evil": Attack(canary)}
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    assert "holds more than tensors: posix.mkdir" in refusal(tmp_path / "x.bin")
    assert not canary.exists()
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert canary.exists(), "the attack is none: this test proves nothing"


def test_truncated_zip_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(data[: len(data) // 2])
    assert "damaged, cut short" in refusal(tmp_path / "x.bin")


def test_zip_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adakron.importing.checkpoint.MEMORY_BYTES", 100 << 20)
    torch.save({"a": torch.zeros(200_000_000, dtype=torch.uint8)}, tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "whole.bin") as whole, zipfile.ZipFile(tmp_path / "x.bin", "w") as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
    (tmp_path / "whole.bin").unlink()
    assert (tmp_path / "x.bin").stat().st_size < 2_000_000
    assert "more memory than its size explains" in refusal(tmp_path / "x.bin")


# A child takes seconds to start: what it makes of what it has read is tested in this process.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "expected a state dict"),
        ({}, "expected a state dict"),
        ({"epoch": 3}, "epoch: expected a tensor; found int"),
        ({3: torch.zeros(1)}, "3: expected a tensor"),
        ({"a": {"b": torch.zeros(1)}}, "a: expected a tensor; found dict"),
        ({"a": torch.zeros(2).to_sparse()}, "a: expected a plain tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a: expected a plain tensor"),
        ({"a": torch.zeros(1).expand(10**12)}, "more than the file can hold"),
        (dict.fromkeys(map(str, range(20_001)), torch.zeros(0)), "at most 20000 tensors"),
    ],
)
def test_anything_but_a_state_dict_is_refused(content: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        copies(content, 1000)


def test_too_large_or_too_slow_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "x.bin")
    assert "expected at most 100 bytes" in refusal(tmp_path / "x.bin", max_bytes=100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "not read within 0.05 s" in refusal(tmp_path / "x.bin", time_limit_s=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("name", ["", "missing.bin"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / name)


def test_the_childs_environment_has_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "show.py"
    program.write_text("import os\nprint(sorted(os.environ))\nraise SystemExit(3)\n")
    monkeypatch.setattr("adakron.importing.checkpoint.PROGRAM", program)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.bin")
    assert "AWS" not in refusal(tmp_path / "x.bin")
