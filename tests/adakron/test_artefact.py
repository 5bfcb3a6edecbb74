"""The artefact: one file that is complete, read whole or refused, the same bytes whoever writes it."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from adakron import AdaKronConfig, Adapter, AdapterConfig, Backbone, Example
from adakron.artefact import (
    CONFIG_FILE,
    EXPECTED_FILE,
    MAX_EXAMPLE_CHARS,
    MAX_EXAMPLES,
    MAX_FILE_BYTES,
    WEIGHTS_FILE,
    expected_json,
    expected_shapes,
    parse_expected,
)
from adakron.errors import (
    ConfigError,
    DtypeError,
    FormatError,
    HeaderError,
    MissingTensorError,
    NonFiniteError,
    ShapeError,
    UnexpectedTensorError,
)
from tests.tiny import HIDDEN, LAYERS, safetensors_file, tiny_adapter, tiny_backbone, tiny_config

GOLDEN = (Example("the people found a new place", None, (0.25, -1.5)), Example("naïve 好 🙂", None, (0.0, 3e-8)))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def backbone() -> Backbone:
    return tiny_backbone()


def config(**changes: Any) -> AdapterConfig:
    return tiny_config(backbone(), **changes)


def adapter(**changes: Any) -> Adapter:
    return tiny_adapter(backbone(), **changes)


@cache
def golden_adapter() -> Adapter:
    return adapter(expected=GOLDEN)


def zeros(shape_of: AdapterConfig) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in expected_shapes(shape_of).items()}


def by_hand(
    tensors: Mapping[str, Tensor], settings: AdapterConfig | None = None, drop: tuple[str, ...] = (), **metadata: str
) -> bytes:
    """A file as the library writes it, so that nothing of ours has checked it; `metadata` replaces ours."""
    known = {
        "format": "pt",
        "adakron.format_version": "1",
        "adakron.config": json.dumps((settings or config()).to_dict()),
    }
    known |= {name.replace("__", "."): value for name, value in metadata.items()}
    return save(dict(tensors), metadata={name: value for name, value in known.items() if name not in drop})


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        Adapter.from_bytes(data)
    assert str(caught.value).isprintable()
    return caught.value


# Round trip.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", ["linear", "roberta"])
def test_file_gives_back_config_tensors_and_examples_bit_for_bit(dtype: torch.dtype, head: Any) -> None:
    wanted = config(head=head)
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in expected_shapes(wanted).items()}
    read = Adapter.from_bytes(Adapter.build(wanted, tensors, GOLDEN).to_bytes())
    assert read.config == wanted
    assert read.expected == GOLDEN
    assert set(read.tensors) == set(tensors)
    for name, tensor in read.tensors.items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, tensors[name])


def test_tensors_of_different_dtypes_may_stand_in_one_file() -> None:
    tensors = zeros(config())
    tensors["head.bias"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    tensors["layers.0.a1.bias"] = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float16)
    read = Adapter.build(config(), tensors).tensors
    assert (read["head.bias"].dtype, read["layers.0.a1.bias"].dtype) == (torch.bfloat16, torch.float16)
    assert torch.equal(read["layers.0.a1.bias"], tensors["layers.0.a1.bias"])


def test_extreme_but_finite_values_are_kept() -> None:
    tensors = zeros(config())
    tensors["head.bias"] = torch.tensor([torch.finfo(torch.float32).max, 1e-45])
    assert torch.equal(Adapter.build(config(), tensors).tensors["head.bias"], tensors["head.bias"])


def test_sha256_is_that_of_the_bytes_read() -> None:
    data = golden_adapter().to_bytes()
    read = Adapter.from_bytes(data)
    assert read.to_bytes() == data
    assert read.sha256 == hashlib.sha256(data).hexdigest()
    assert read.size_bytes == len(data)


def test_file_written_by_others_keeps_its_own_bytes() -> None:
    """Identity is what was read, never what we would have written."""
    data = by_hand(zeros(config()))
    assert Adapter.from_bytes(data).to_bytes() == data
    assert Adapter.from_bytes(data) != Adapter.build(config(), zeros(config()))


def test_adapters_are_equal_if_their_bytes_are() -> None:
    first, second = golden_adapter(), Adapter.from_bytes(golden_adapter().to_bytes())
    assert first == second
    assert len({first, second, adapter(seed=1)}) == 2


def test_same_tensors_with_other_labels_are_another_adapter() -> None:
    first = adapter(labels=("no", "yes"))
    second = Adapter.build(config(labels=("bad", "good")), first.tensors)
    assert first.sha256 != second.sha256
    assert second.config.label_names == ("bad", "good")


def test_parameters_count_adapters_and_head() -> None:
    per_layer = AdaKronConfig(bottleneck=12, factor=4).parameters_per_layer(HIDDEN)
    assert adapter().parameters == LAYERS * per_layer + 2 * HIDDEN + 2
    assert adapter(head="roberta").parameters == LAYERS * per_layer + HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN + 2


def test_expected_shapes_are_those_of_the_equation() -> None:
    shapes = expected_shapes(config(adakron=AdaKronConfig(bottleneck=12, factor=4, first_layer=2)))
    assert shapes == {
        "layers.2.a1.weight": (3, 20),
        "layers.2.a1.bias": (3,),
        "layers.2.a2.weight": (4, 20),
        "layers.2.a2.bias": (4,),
        "layers.2.up.weight": (20, 12),
        "layers.2.up.bias": (20,),
        "head.weight": (2, 20),
        "head.bias": (2,),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"layers.0.a1.weight": t["layers.0.a1.weight"].t().contiguous().t()},
        lambda t: t | {"layers.1.a1.bias": t["layers.0.a1.bias"]},
        lambda t: t | {"head.weight": torch.nn.Parameter(t["head.weight"])},
        lambda t: dict(reversed(t.items())),
    ],
    ids=["not contiguous", "shared memory", "parameter", "another order"],
)
def test_build_takes_any_tensors_of_these_values(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    assert Adapter.build(config(), change(zeros(config()))).sha256 == Adapter.build(config(), zeros(config())).sha256


# Deterministic bytes.

# The package's own __init__ would import transformers, which takes longer than all the other tests here.
BUILD = """
import sys, types
sys.modules["adakron"] = types.ModuleType("adakron")
sys.modules["adakron"].__path__ = ["adakron"]
import torch
from adakron.artefact import Adapter, Example, expected_shapes
from adakron.config import AdaKronConfig, AdapterConfig, Fingerprint
config = AdapterConfig(AdaKronConfig(12), 20, 2, "b", Fingerprint("a" * 64, "b" * 64, "c" * 64), ("no", "yes"))
tensors = {name: torch.full(shape, 0.5) for name, shape in expected_shapes(config).items()}
print(Adapter.build(config, tensors, [Example("a text", None, (0.5, 1.0))]).sha256)
"""


def test_bytes_are_the_same_in_every_process(project_dir: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            cwd=project_dir,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate(timeout=280)[0].strip() for run in runs)
    assert len(first) == 64
    assert first == second


def test_bytes_are_the_same_every_time() -> None:
    """The library itself orders metadata at random."""
    tensors = zeros(config())
    assert len({Adapter.build(config(), tensors, GOLDEN).sha256 for _ in range(20)}) == 1


def test_header_is_canonical_and_the_data_aligned() -> None:
    data = golden_adapter().to_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].decode()
    assert length % 8 == 0
    assert text.rstrip() == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_safetensors_library_reads_our_file() -> None:
    tensors = load(golden_adapter().to_bytes())
    assert all(torch.equal(tensor, golden_adapter().tensors[name]) for name, tensor in tensors.items())


# Tensors that are not what the configuration implies.

NAMES = list(expected_shapes(config()))


@pytest.mark.parametrize("name", NAMES)
def test_missing_tensor_is_refused_by_name(name: str) -> None:
    tensors = zeros(config())
    del tensors[name]
    error = refusal(by_hand(tensors))
    assert type(error) is MissingTensorError
    assert error.tensor == name
    assert error.expected == str(list(expected_shapes(config())[name]))


@pytest.mark.parametrize(
    "name",
    [
        "layers.3.a1.weight",
        "layers.-1.a1.weight",
        "layers.00.a1.weight",
        "layers.0.a1.weight ",
        "Layers.0.a1.weight",
        "layers.0.a3.weight",
        "base_model.model.layers.0.a1.weight",
        "head.dense.weight",
        "encoder.layer.0.output.dense.weight",
        "../../etc/passwd",
        "",
    ],
)
def test_unexpected_tensor_is_refused_by_name(name: str) -> None:
    error = refusal(by_hand(zeros(config()) | {name: torch.zeros(3, 20)}))
    assert type(error) is UnexpectedTensorError
    assert (error.tensor, error.expected, error.found) == (name, "nothing", "[3, 20]")


@pytest.mark.parametrize("renamed", ["LAYERS.0.A1.BIAS", "layers.0.a1.bias_", "model.layers.0.a1.bias"])
def test_name_is_matched_byte_for_byte(renamed: str) -> None:
    tensors = zeros(config())
    tensors[renamed] = tensors.pop("layers.0.a1.bias")
    assert refusal(by_hand(tensors)).tensor == "layers.0.a1.bias"


def test_layers_below_first_layer_are_neither_needed_nor_allowed() -> None:
    later = config(adakron=AdaKronConfig(bottleneck=12, factor=4, first_layer=1))
    assert Adapter.build(later, zeros(later)).config.first_layer == 1
    error = refusal(by_hand(zeros(config()), later))
    assert error.tensor == "layers.0.a1.bias"


@pytest.mark.parametrize("name", NAMES)
def test_misshaped_tensor_is_refused_by_name_with_both_shapes(name: str) -> None:
    shape = expected_shapes(config())[name]
    wrong: tuple[tuple[int, ...], ...] = (
        (*shape, 1),
        (1, *shape),
        tuple(1 for _ in shape),
        tuple(size + 1 for size in shape),
        (int(torch.tensor(shape).prod()), 1, 1),
        (),
        (0,),
    )
    if len(shape) == 2:
        wrong += (shape[::-1], (shape[0] * shape[1],))
    for bad in wrong:
        error = refusal(by_hand(zeros(config()) | {name: torch.zeros(bad)}))
        assert type(error) is ShapeError
        assert (error.tensor, error.expected, error.found) == (name, str(list(shape)), str(list(bad)))


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"adakron": AdaKronConfig(bottleneck=16, factor=4)}, ("[4, 20]", "[3, 20]")),
        ({"labels": ("a", "b", "c")}, ("[3, 20]", "[2, 20]")),
    ],
)
def test_config_and_tensors_that_disagree_are_refused_naming_both_numbers(
    changes: Any, numbers: tuple[str, str]
) -> None:
    error = refusal(by_hand(zeros(config()), config(**changes)))
    assert type(error) is ShapeError
    assert (error.expected, error.found) == numbers
    assert all(number in str(error) for number in numbers)


def test_config_of_another_depth_or_head_than_the_tensors_is_refused() -> None:
    deeper = dataclasses.replace(config(), num_hidden_layers=4)
    assert refusal(by_hand(zeros(config()), deeper)).tensor == "layers.3.a1.bias"
    assert refusal(by_hand(zeros(config()), config(head="roberta"))).tensor == "head.dense.bias"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_dtype_outside_the_three_is_refused(dtype: torch.dtype) -> None:
    error = refusal(by_hand(zeros(config()) | {"head.bias": torch.zeros(2).to(dtype)}))
    assert type(error) is DtypeError
    assert error.tensor == "head.bias"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_nan_or_infinity_anywhere_is_refused_naming_the_tensor(name: str, dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        for position in (0, -1):
            tensors = {key: tensor.to(dtype) for key, tensor in zeros(config()).items()}
            tensors[name].view(-1)[position] = bad
            error = refusal(by_hand(tensors))
            assert type(error) is NonFiniteError
            assert error.tensor == name
            assert f"1 of {tensors[name].numel()}" in str(error)


def test_build_refuses_what_a_file_would_be_refused_for() -> None:
    tensors = zeros(config())
    del tensors["head.bias"]
    with pytest.raises(MissingTensorError):
        Adapter.build(config(), tensors)


# Metadata.


def test_file_without_a_config_is_no_adakron_adapter() -> None:
    error = refusal(by_hand(zeros(config()), drop=("adakron.config",)))
    assert "not an AdaKron adapter" in str(error)
    assert error.hint is not None


def test_peft_lora_file_is_named() -> None:
    names = [
        f"base_model.model.encoder.layer.{n}.attention.self.query.lora_{m}.weight" for n in range(12) for m in "AB"
    ]
    data = save({name: torch.zeros(2, 3) for name in names}, metadata={"format": "pt"})
    assert "PEFT LoRA" in str(refusal(data))


def test_adapterhub_file_is_named() -> None:
    names = [f"bert.encoder.layer.{n}.output.adapters.sst-2.adapter_down.0.weight" for n in range(12)]
    assert "AdapterHub" in str(refusal(save({name: torch.zeros(2, 3) for name in names})))


def test_whole_model_is_no_adakron_adapter() -> None:
    assert "not an AdaKron adapter" in str(refusal(save(dict(backbone().model.state_dict()), {"format": "pt"})))


def test_unknown_metadata_key_is_refused_by_name() -> None:
    assert "adakron.license" in str(refusal(by_hand(zeros(config()), adakron__license="x")))


@pytest.mark.parametrize("version", ["2", "0", "1.0", "", "one"])
def test_other_format_version_is_named_before_anything_else(version: str) -> None:
    error = refusal(by_hand({}, adakron__format_version=version, adakron__config="{}", adakron__of_that_format="x"))
    assert "adakron.format_version" in str(error)
    assert repr(version) in str(error)
    assert error.hint is not None
    assert "upgrade" in error.hint


def test_missing_format_version_is_refused() -> None:
    assert "adakron.format_version" in str(refusal(by_hand(zeros(config()), drop=("adakron.format_version",))))


def test_metadata_format_may_be_absent() -> None:
    assert Adapter.from_bytes(by_hand(zeros(config()), drop=("format",))).expected == ()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda raw: raw | {"bottleneck": 13}, "bottleneck"),
        (lambda raw: raw | {"auto_map": {}}, "auto_map"),
        (lambda raw: {name: value for name, value in raw.items() if name != "order"}, "order"),
        (lambda raw: raw | {"format_version": 2}, "format_version"),
    ],
)
def test_bad_config_inside_is_refused_naming_the_key(change: Callable[[dict[str, Any]], Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Adapter.from_bytes(by_hand(zeros(config()), adakron__config=json.dumps(change(config().to_dict()))))
    assert caught.value.key == key


@pytest.mark.parametrize("text", ["", "null", "{", "[]", '{"a": 1, "a": 2}', '{"a": NaN}'])
def test_config_inside_that_is_no_strict_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="adapter_config"):
        Adapter.from_bytes(by_hand(zeros(config()), adakron__config=text))


def test_what_the_library_alone_refuses_is_refused_as_a_bad_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> dict[str, Tensor]:
        raise RuntimeError("some\nreason")

    monkeypatch.setattr("adakron.artefact.load", fail)
    with pytest.raises(HeaderError, match="safetensors refuses the file"):
        Adapter.from_bytes(golden_adapter().to_bytes())


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


# Property: whatever bytes come, an adapter or one of two errors.


@cache
def valid_file() -> bytes:
    """A small valid file, most of it header."""
    one_layer = config(adakron=AdaKronConfig(bottleneck=2, factor=2, first_layer=2))
    tensors = {name: torch.randn(shape) for name, shape in expected_shapes(one_layer).items()}
    return Adapter.build(one_layer, tensors, GOLDEN[:1]).to_bytes()


def check(data: bytes) -> bool:
    """Whether it is accepted; then the library must read the same tensors from it."""
    try:
        read = Adapter.from_bytes(data)
    except (FormatError, ConfigError):
        return False
    theirs = load(data)
    assert set(theirs) == set(read.tensors) == set(expected_shapes(read.config))
    for name, tensor in read.tensors.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])
        assert bool(torch.isfinite(tensor).all())
    assert read.sha256 == hashlib.sha256(data).hexdigest()
    return True


positions = st.integers(0, 7) | st.integers(0, 2600) | st.integers(0, 10**6)
new_bytes = st.sampled_from(b'{}[]":,.-0123456789eE\\ntu \x00\x7f\x80\xc3\xff') | st.integers(0, 255)
mutations = st.lists(
    st.tuples(st.sampled_from(["replace", "insert", "delete", "cut", "repeat"]), positions, new_bytes),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(mutations)
@example([("replace", 10**6, 7)])
def test_mutated_file_is_refused_or_read_as_the_library_reads_it(mutations: list[tuple[str, int, int]]) -> None:
    data = bytearray(valid_file())
    for kind, position, byte in mutations:
        at = position % (len(data) or 1)
        if kind == "replace" and data:
            data[at] = byte
        elif kind == "insert":
            data.insert(at, byte)
        elif kind == "delete":
            del data[at : at + 1 + byte % 4]
        elif kind == "repeat":
            data[at:at] = data[at : at + byte]
        elif kind == "cut":
            del data[at:]
    check(bytes(data))


def test_valid_file_is_accepted_by_the_property_and_its_last_byte_is_data() -> None:
    data = valid_file()
    assert check(data)
    assert check(data[:-1] + b"\x3f")
    assert not check(data[:-1] + b"\x7f") or data[-2] < 0x80


tokens = st.sampled_from(
    ['"F32"', '"BF16"', '"I8"', "0", "-0", "1", "20", "[]", "[2]", "{}", "null", "true", "NaN", '"1"', '"\\ud800"', ""]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 400), tokens), min_size=1, max_size=3))
def test_header_with_other_tokens_is_refused_or_read_as_the_library_reads_it(edits: list[tuple[int, str]]) -> None:
    """Mutations that keep the length of the header true, so that they reach what stands in it."""
    data = valid_file()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].decode()
    for number, token in edits:
        parts = _split(text)
        parts[number % len(parts)] = token
        text = "".join(parts)
    check(safetensors_file(text, data[8 + length :]))


def _split(text: str) -> list[str]:
    """JSON text as a list of strings, numbers and the signs between them."""
    parts, rest = [], text
    while rest:
        if rest[0] == '"':
            end = 1
            while rest[end : end + 1] not in ('"', ""):
                end += 2 if rest[end] == "\\" else 1
            size = end + 1
        else:
            size = 1
            while rest[0].isalnum() and rest[size : size + 1].isalnum():
                size += 1
        parts.append(rest[:size])
        rest = rest[size:]
    return parts
