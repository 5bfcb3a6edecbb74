"""What stands around an artefact's tensors: golden examples, the files of its folder, and how files are read."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from adakron import Adapter, Example
from adakron.artefact import (
    CONFIG_FILE,
    EXPECTED_FILE,
    MAX_EXAMPLE_CHARS,
    MAX_EXAMPLES,
    MAX_FILE_BYTES,
    WEIGHTS_FILE,
    expected_json,
    parse_expected,
)
from adakron.errors import (
    ConfigError,
    FormatError,
)
from tests.adakron.artefact_files import GOLDEN, adapter, by_hand, config, golden_adapter, refusal, zeros

# Golden examples.


def expected(*rows: Any, **changes: Any) -> str:
    return json.dumps({"format_version": 1, "dtype": "float32", "examples": list(rows)} | changes)


def row(**changes: Any) -> dict[str, Any]:
    return {"text": "a text", "text_pair": None, "logits": [0.5, -1]} | changes


def test_expected_json_is_read_as_examples() -> None:
    assert parse_expected(expected(row()), config()) == (Example("a text", None, (0.5, -1.0)),)
    assert parse_expected(expected_json(GOLDEN), config()) == GOLDEN
    assert json.loads(expected_json(GOLDEN))["dtype"] == "float32"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        expected(format_version=2),
        expected(format_version=True),
        expected(format_version=1.0),
        expected(format_version="1"),
        expected(dtype="bfloat16"),
        expected(dtype=None),
        expected(more=1),
        expected(examples=None),
        expected(examples={}),
        expected(examples="text"),
        expected(*[row()] * (MAX_EXAMPLES + 1)),
        '{"format_version": 1, "dtype": "float32", "examples": [], "examples": []}',
    ],
)
def test_expected_json_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected\.json"):
        parse_expected(text, config())


def test_eight_examples_are_the_most() -> None:
    assert len(parse_expected(expected(*[row()] * MAX_EXAMPLES), config())) == 8


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "a text",
        {"text": "a text", "logits": [1, 2]},
        row(label="no"),
        row(text=None),
        row(text=3),
        row(text=""),
        row(text=" \n"),
        row(text="x" * (MAX_EXAMPLE_CHARS + 1)),
        row(text_pair=""),
        row(text_pair="a pair"),
        row(logits=None),
        row(logits=[]),
        row(logits=[1]),
        row(logits=[1, 2, 3]),
        row(logits=[1, "2"]),
        row(logits=[1, True]),
        row(logits=[1, None]),
        row(logits={"0": 1, "1": 2}),
    ],
)
def test_example_that_does_not_fit_the_adapter_is_refused_by_its_number(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected\.examples\[1\]") as caught:
        parse_expected(expected(row(), bad), config())
    assert caught.value.key == "expected.examples[1]"


@pytest.mark.parametrize("logit", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"'])
def test_example_whose_logit_is_no_finite_number_is_refused(logit: str) -> None:
    with pytest.raises(ConfigError):
        parse_expected(expected(row(logits=[1, 77])).replace("77", logit), config())


def test_example_with_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ConfigError):
        parse_expected(expected(row(text="\ud800")), config())


@pytest.mark.parametrize("pair", [None, "", " ", 3, "x" * (MAX_EXAMPLE_CHARS + 1)])
def test_example_of_a_pair_adapter_needs_its_second_text(pair: Any) -> None:
    pairs = config(text_fields=("text", "text_pair"))
    assert parse_expected(expected(row(text_pair="more")), pairs)[0].text_pair == "more"
    with pytest.raises(ConfigError, match="text_pair"):
        parse_expected(expected(row(text_pair=pair)), pairs)


def test_bad_examples_inside_the_file_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected\.examples\[0\]"):
        Adapter.from_bytes(by_hand(zeros(config()), adakron__expected=expected(row(logits=[1]))))


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    golden_adapter().write(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_folder_round_trip(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, EXPECTED_FILE}
    assert Adapter.from_folder(folder) == golden_adapter() == Adapter.from_file(folder / WEIGHTS_FILE)
    assert Adapter.from_folder(str(folder)).expected == GOLDEN


def test_one_file_is_complete_without_the_folder(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    (folder / EXPECTED_FILE).unlink()
    read = Adapter.from_folder(folder)
    assert (read.config, read.expected) == (golden_adapter().config, GOLDEN)


def test_json_beside_may_be_formatted_otherwise(folder: Path) -> None:
    for name in (CONFIG_FILE, EXPECTED_FILE):
        file = folder / name
        file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert Adapter.from_folder(folder) == golden_adapter()


def test_other_files_in_the_folder_are_not_read(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"\xff")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    os.mkfifo(folder / "pipe")
    assert Adapter.from_folder(folder) == golden_adapter()


def test_config_beside_that_differs_is_refused(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text(config(max_length=16).to_json())
    with pytest.raises(FormatError, match=rf"{CONFIG_FILE} contradicts"):
        Adapter.from_folder(folder)


def test_broken_config_beside_is_refused(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ConfigError):
        Adapter.from_folder(folder)


@pytest.mark.parametrize("examples", [(), GOLDEN[:1], GOLDEN[::-1], (GOLDEN[0], Example("other", None, (0.0, 3e-8)))])
def test_examples_beside_that_differ_are_refused(folder: Path, examples: tuple[Example, ...]) -> None:
    (folder / EXPECTED_FILE).write_text(expected_json(examples))
    with pytest.raises(FormatError, match=rf"{EXPECTED_FILE} contradicts"):
        Adapter.from_folder(folder)


def test_folder_without_the_safetensors_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(FormatError, match=WEIGHTS_FILE):
        Adapter.from_folder(folder)


def test_write_replaces_what_an_older_adapter_left(folder: Path) -> None:
    plain = adapter(seed=3)
    plain.write(folder)
    assert not (folder / EXPECTED_FILE).exists()
    assert Adapter.from_folder(folder) == plain


# Memory and files.


def test_tensors_do_not_alias_the_bytes() -> None:
    data = golden_adapter().to_bytes()
    read = Adapter.from_bytes(data)
    for tensor in read.tensors.values():
        tensor.fill_(7)
    assert hashlib.sha256(data).hexdigest() == read.sha256
    assert torch.equal(Adapter.from_bytes(data).tensors["head.bias"], golden_adapter().tensors["head.bias"])


def test_built_adapter_does_not_alias_the_tensors_it_was_built_from() -> None:
    tensors = zeros(config())
    built = Adapter.build(config(), tensors)
    tensors["head.bias"].fill_(7)
    assert not built.tensors["head.bias"].any()


def test_file_overwritten_or_cut_after_loading_changes_nothing(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    read = Adapter.from_file(file)
    with file.open("r+b") as stream:
        stream.write(b"\x55" * read.size_bytes)
    assert torch.equal(read.tensors["layers.0.up.weight"], golden_adapter().tensors["layers.0.up.weight"])
    os.truncate(file, 1)
    assert torch.equal(read.tensors["layers.2.up.weight"], golden_adapter().tensors["layers.2.up.weight"])
    assert hashlib.sha256(read.to_bytes()).hexdigest() == read.sha256


def unreadable(path: str | Path) -> FormatError:
    with pytest.raises(FormatError) as caught:
        Adapter.from_file(path)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("link", [WEIGHTS_FILE, CONFIG_FILE, EXPECTED_FILE])
def test_symbolic_link_is_refused(folder: Path, link: str) -> None:
    real = (folder / link).rename(folder / "real")
    (folder / link).symlink_to(real)
    with pytest.raises(FormatError, match=link):
        Adapter.from_folder(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("with_writer", [False, True])
def test_pipe_is_refused_without_waiting(tmp_path: Path, with_writer: bool) -> None:
    pipe = tmp_path / WEIGHTS_FILE
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR) if with_writer else None
    try:
        assert "not a regular file" in str(unreadable(pipe))
    finally:
        if writer is not None:
            os.close(writer)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/"])
def test_device_or_folder_is_refused_without_reading(path: str) -> None:
    assert "not a regular file" in str(unreadable(path))


@pytest.mark.parametrize("name", ["missing", "no\0such", "new\nline", "x" * 300])
def test_file_that_cannot_be_opened_is_refused(tmp_path: Path, name: str) -> None:
    assert unreadable(str(tmp_path / name)).hint is not None


def test_file_over_the_cap_is_refused(tmp_path: Path) -> None:
    file = tmp_path / WEIGHTS_FILE
    file.touch()
    os.truncate(file, MAX_FILE_BYTES + 1)
    assert str(unreadable(file)) == f"{WEIGHTS_FILE}: expected at most {MAX_FILE_BYTES} bytes"


@pytest.mark.parametrize("name", [CONFIG_FILE, EXPECTED_FILE])
def test_json_beside_over_its_cap_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("a") as stream:
        stream.write(" " * (1 << 20))
    with pytest.raises(FormatError, match=rf"^{name}: expected at most 1048576 bytes$"):
        Adapter.from_folder(folder)


def test_bytes_over_the_cap_are_refused() -> None:
    assert str(MAX_FILE_BYTES) in str(refusal(bytes(MAX_FILE_BYTES + 1)))


def test_refused_files_leave_no_descriptor_open(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    for path in (folder, folder / "pipe", folder / "missing", folder / CONFIG_FILE):
        unreadable(path)
    if before is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == before
