"""The artefact: one file that is complete, read whole or refused, the same bytes whoever writes it."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from adakron import AdaKronConfig, Adapter
from adakron.artefact import (
    expected_shapes,
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
from tests.adakron.artefact_files import (
    DTYPES,
    GOLDEN,
    adapter,
    backbone,
    by_hand,
    config,
    golden_adapter,
    refusal,
    zeros,
)
from tests.tiny import HIDDEN, LAYERS, safetensors_file

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
