"""One test for each refusal of the safetensors container, W1 to W7, and what may pass.

W1 size    W2 header text    W3 metadata    W4 entries    W5 offsets    W6 other formats    W7 names
"""

import gzip
import io
import json
import pickle
import tarfile
import tracemalloc
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save

from adakron.errors import DtypeError, FormatError, HeaderError
from adakron.header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    MAX_METADATA_CHARS,
    MAX_METADATA_KEYS,
    MAX_TENSORS,
    TensorEntry,
    read_header,
)
from tests.tiny import safetensors_file


def entry(**changes: Any) -> dict[str, Any]:
    """The entry of a tensor F32 [2, 3], 24 bytes from 0."""
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read_header(data)
    message = str(caught.value)
    assert message.isprintable(), "it goes into logs and replies"
    assert len(message) < 400
    return caught.value


def refused_header(data: bytes) -> str:
    error = refusal(data)
    assert type(error) is HeaderError
    return str(error)


# What passes.


def test_file_of_the_safetensors_library_is_read() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(1, 2).half()}
    data = save(tensors, metadata={"format": "pt"})
    header = read_header(data)
    assert {name: (e.dtype, e.shape) for name, e in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
        "c": ("F16", (1, 2)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.data_start == 8 + int.from_bytes(data[:8], "little")


def test_entry_says_where_its_bytes_are() -> None:
    data = safetensors_file({"a": entry(), "b": entry(dtype="F16", data_offsets=[24, 36])}, bytes(36))
    assert read_header(data).tensors["b"] == TensorEntry("F16", (2, 3), 24, 36)


def test_file_without_tensors_or_metadata_is_an_empty_header() -> None:
    header = read_header(safetensors_file("{}"))
    assert (dict(header.tensors), dict(header.metadata), header.data_start) == ({}, {}, 10)


def test_scalar_and_empty_tensor_are_shapes_too() -> None:
    entries = {
        "scalar": entry(shape=[], data_offsets=[0, 4]),
        "empty": entry(shape=[3, 0], data_offsets=[4, 4]),
        "last": entry(shape=[1], data_offsets=[4, 8]),
    }
    assert len(read_header(safetensors_file(entries, bytes(8))).tensors) == 3


def test_tensors_may_stand_in_any_order_in_the_header() -> None:
    data = safetensors_file({"b": entry(data_offsets=[24, 48]), "a": entry()}, bytes(48))
    assert set(read_header(data).tensors) == {"a", "b"}


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x1F8, 123, 0x7B00 + 123, 0x8B1F])
def test_header_whose_length_looks_like_another_format_is_read(length: int) -> None:
    """640 bytes is b"\\x80\\x02": a pickle to whoever looks at the first two bytes alone."""
    text = json.dumps({"a": entry()})
    header = read_header(safetensors_file(text + " " * (length - len(text)), bytes(24)))
    assert header.data_start == 8 + length


# W1: size.


@pytest.mark.parametrize("size", range(8))
def test_w1_file_too_short_for_a_header_is_refused(size: int) -> None:
    assert f"{size} bytes" in refused_header(bytes(size))


@pytest.mark.parametrize("claim", [MAX_HEADER_BYTES + 1, 100_000_000, 1 << 40, (1 << 64) - 1])
def test_w1_header_that_claims_more_than_the_cap_is_refused(claim: int) -> None:
    message = refused_header(claim.to_bytes(8, "little") + b"\x00{}" + bytes(64))
    assert str(MAX_HEADER_BYTES) in message
    assert str(claim) in message


def test_w1_header_over_the_cap_is_refused_though_all_of_it_is_there() -> None:
    assert str(MAX_HEADER_BYTES) in refused_header(safetensors_file("{}" + " " * MAX_HEADER_BYTES))
    assert read_header(safetensors_file("{}" + " " * (MAX_HEADER_BYTES - 2)))


def test_w1_header_that_claims_more_than_the_file_has_is_refused() -> None:
    assert "claims 100 bytes, the file has 10" in refused_header((100).to_bytes(8, "little") + b"{}")


def test_w1_too_many_tensors_are_refused() -> None:
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    entries = {f"t{index}": none for index in range(MAX_TENSORS + 1)}
    assert str(MAX_TENSORS + 1) in refused_header(safetensors_file(entries))
    del entries["t0"]
    assert len(read_header(safetensors_file(entries)).tensors) == MAX_TENSORS


def test_w1_memory_does_not_follow_what_the_file_claims() -> None:
    huge = 1 << 40
    claims = [
        huge.to_bytes(8, "little") + b"{}",
        safetensors_file({"a": entry(shape=[huge // 4], data_offsets=[0, huge])}, bytes(24)),
        safetensors_file({"a": entry(shape=[huge, huge, huge], data_offsets=[0, huge])}, bytes(24)),
    ]
    tracemalloc.start()
    try:
        for data in claims:
            refused_header(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# W2: the header's text.


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b" ",
        b"[]",
        b"null",
        b'"a"',
        b" {}",
        b"\n{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"{} x",
        b"{",
        b'{"a": }',
        b"{'a': 1}",
        b'{"\xff": 1}',
        b'{"__metadata__": {"a": "\xed\xa0\x80"}}',
        b'{"__metadata__": {"a": "\\ud800"}}',
        b'{"__metadata__": {"a": "\\ude00\\ud83d"}}',
        b'{"a": NaN}',
        b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": {"dtype": "F32", "shape": [' + b"0" * 100 + b'], "data_offsets": [0, 0]}}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' * 100_000,
        b'{"a": "\x00"}',
        b"\x00" * 16,
        bytes(range(256)),
    ],
    ids=lambda header: repr(header[:30]),
)
def test_w2_header_that_is_not_one_strict_json_object_is_refused(header: bytes) -> None:
    refused_header(safetensors_file(header))


@pytest.mark.parametrize(
    "header",
    [
        '{"a": ENTRY, "a": ENTRY}'.replace("ENTRY", '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'),
        '{"a": {"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        '{"__metadata__": {"x": "1", "x": "2"}}',
        '{"__metadata__": {}, "__metadata__": {}}',
        '{"__metadata__": {"x": "1", "\\u0078": "1"}}',
    ],
)
def test_w2_duplicate_key_at_any_level_is_refused(header: str) -> None:
    assert "stands twice" in refused_header(safetensors_file(header))


# W3: metadata.


@pytest.mark.parametrize("metadata", [None, True, 1, "text", [], [["a", "b"]]])
def test_w3_metadata_that_is_no_object_is_refused(metadata: Any) -> None:
    assert "__metadata__" in refused_header(safetensors_file({"__metadata__": metadata}))


@pytest.mark.parametrize("value", [None, True, 1, 0.5, [], {}, {"a": "b"}, ["a"]])
def test_w3_metadata_value_that_is_no_string_is_refused(value: Any) -> None:
    assert "strings" in refused_header(safetensors_file({"__metadata__": {"good": "x", "bad": value}}))


def test_w3_metadata_that_is_too_large_is_refused() -> None:
    assert read_header(safetensors_file({"__metadata__": {"k": "x" * (MAX_METADATA_CHARS - 1)}}))
    assert str(MAX_METADATA_CHARS) in refused_header(
        safetensors_file({"__metadata__": {"k": "x" * MAX_METADATA_CHARS}})
    )
    assert str(MAX_METADATA_CHARS) in refused_header(
        safetensors_file({"__metadata__": {"k" * MAX_METADATA_CHARS: "x"}})
    )


def test_w3_metadata_with_too_many_keys_is_refused() -> None:
    many = {f"k{index}": "" for index in range(MAX_METADATA_KEYS + 1)}
    assert str(MAX_METADATA_KEYS) in refused_header(safetensors_file({"__metadata__": many}))
    del many["k0"]
    assert len(read_header(safetensors_file({"__metadata__": many})).metadata) == MAX_METADATA_KEYS


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x0b", "\r", "\x1b", "\x1f", "\x7f", "\x85", "\x9b"])
@pytest.mark.parametrize("place", ["key", "value"])
def test_w3_control_character_in_metadata_is_refused(character: str, place: str) -> None:
    text = f"good{character}bad"
    metadata = {text: "x"} if place == "key" else {"x": text}
    assert "control characters" in refused_header(safetensors_file({"__metadata__": metadata}))


def test_w3_tab_line_feed_and_any_other_text_are_kept_verbatim() -> None:
    metadata = {"json": '{\n\t"a": 1\n}', "text": "naïve 好 🙂 \u00a0\u200b"}
    assert read_header(safetensors_file({"__metadata__": metadata})).metadata == metadata


# W4: entries.


@pytest.mark.parametrize("value", [None, True, 1, "F32", [], [entry()], {}])
def test_w4_entry_that_is_no_object_of_three_fields_is_refused(value: Any) -> None:
    message = refused_header(safetensors_file({"the.tensor": value}, bytes(24)))
    assert message == "the.tensor: expected exactly dtype, shape and data_offsets"


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_w4_entry_without_a_field_is_refused(field: str) -> None:
    broken = entry()
    del broken[field]
    error = refusal(safetensors_file({"the.tensor": broken}, bytes(24)))
    assert error.tensor == "the.tensor"


@pytest.mark.parametrize("field", ["strides", "Dtype", "__metadata__", ""])
def test_w4_entry_with_another_field_is_refused(field: str) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(**{field: 1})}, bytes(24)))
    assert error.tensor == "the.tensor"


@pytest.mark.parametrize(
    "dtype",
    "F64 I64 I32 I16 I8 U64 U32 U16 U8 BOOL F8_E5M2 F8_E4M3 F4 C64 f32 float32 Q4_0".split(),
)
def test_w4_dtype_outside_the_three_is_refused(dtype: str) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(dtype=dtype)}, bytes(24)))
    assert type(error) is DtypeError
    assert (error.tensor, error.expected, error.found) == ("the.tensor", "F32, F16 or BF16", dtype)


@pytest.mark.parametrize("dtype", [None, True, 32, ["F32"], {"F32": 1}, "", "F32\r\nfake log line\x1b[31m", "x" * 9999])
def test_w4_dtype_that_is_no_known_name_is_refused_and_shown_escaped(dtype: Any) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(dtype=dtype)}, bytes(24)))
    assert type(error) is DtypeError
    assert error.found is not None
    assert error.found.isprintable()
    assert len(error.found) < 64


@pytest.mark.parametrize(
    "shape", [None, 6, "2,3", {}, [2, 3.0], [2, "3"], [True, 6], [-2, -3], [2, None], [[2, 3]], [1, 1, 1, 2, 3]]
)
def test_w4_shape_that_is_no_short_list_of_naturals_is_refused(shape: Any) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(shape=shape)}, bytes(24)))
    assert error.tensor == "the.tensor"
    assert "shape" in str(error)


@pytest.mark.parametrize("shape", [[1 << 48], [1 << 63, 2], [1 << 64], [(1 << 64) + 6]])
def test_w4_dimension_that_would_overflow_is_refused(shape: list[int]) -> None:
    assert "shape" in refused_header(safetensors_file({"a": entry(shape=shape)}, bytes(24)))


@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [(1 << 32), (1 << 32), 4], [1 << 47, 1 << 17, 6]])
def test_w4_product_that_would_wrap_around_64_bits_is_refused(shape: list[int]) -> None:
    """Their byte counts modulo 2**64 are 0 or 24."""
    refused_header(safetensors_file({"a": entry(shape=shape)}, bytes(24)))
    refused_header(safetensors_file({"a": entry(shape=shape, data_offsets=[0, 0])}))


@pytest.mark.parametrize(
    "offsets",
    [None, 24, "0,24", {}, [24], [0, 12, 24], [False, 24], [0, 24.0], [0, "24"], [-24, 0], [24, 0], [0, 1 << 64]],
)
def test_w4_offsets_that_are_no_ascending_pair_of_naturals_are_refused(offsets: Any) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(data_offsets=offsets)}, bytes(24)))
    assert error.tensor == "the.tensor"
    assert "data_offsets" in str(error)


def test_w4_minus_zero_is_no_natural() -> None:
    refused_header(safetensors_file('{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'))


# W5: offsets.


def two(first: tuple[int, int], second: tuple[int, int], size: int = 48) -> bytes:
    """Two tensors of 24 bytes at the given ranges."""
    return safetensors_file({"a": entry(data_offsets=list(first)), "b": entry(data_offsets=list(second))}, bytes(size))


def test_w5_ranges_that_cover_the_data_exactly_pass() -> None:
    assert len(read_header(two((0, 24), (24, 48))).tensors) == 2


@pytest.mark.parametrize(
    "data",
    [
        two((4, 28), (28, 52), 52),
        two((0, 24), (28, 52), 52),
        two((0, 24), (20, 44), 44),
        two((0, 24), (0, 24), 24),
        two((0, 24), (24, 48), 47),
        two((0, 24), (24, 48), 49),
        two((0, 24), (24, 48), 0),
        safetensors_file("{}", b"x"),
        safetensors_file({"a": entry(data_offsets=[1 << 30, (1 << 30) + 24])}, bytes(24)),
        safetensors_file({"a": entry(), "b": entry(shape=[0], data_offsets=[12, 12])}, bytes(24)),
    ],
    ids=[
        "hole at the start",
        "hole between",
        "overlap",
        "same range",
        "past the end",
        "bytes after",
        "no data",
        "data without tensors",
        "far past the end",
        "empty tensor inside another",
    ],
)
def test_w5_ranges_that_do_not_cover_the_data_exactly_are_refused(data: bytes) -> None:
    refused_header(data)


@pytest.mark.parametrize(("shape", "size"), [([2, 3], 23), ([2, 3], 28), ([2, 3], 12), ([7], 24), ([0], 24)])
def test_w5_length_that_is_not_shape_times_dtype_is_refused(shape: list[int], size: int) -> None:
    error = refusal(safetensors_file({"the.tensor": entry(shape=shape, data_offsets=[0, size])}, bytes(size)))
    assert error.tensor == "the.tensor"
    assert str(size) in str(error)


# W6: other formats.


class Canary:
    """Unpickling it would show."""

    opened = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Canary, "opened", True)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("adapter_model.safetensors", bytes(64))
    return buffer.getvalue()


def torch_saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3), "canary": Canary()}, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_w6_pickle_is_named_and_not_opened(protocol: int) -> None:
    error = refusal(pickle.dumps({"state": [Canary()] * 200}, protocol=protocol))
    assert "pickle" in str(error)
    assert error.hint is not None
    assert "safetensors" in error.hint
    assert not Canary.opened


@pytest.mark.parametrize("protocol", [0, 1])
def test_w6_pickle_without_a_mark_is_refused_and_not_opened(protocol: int) -> None:
    refused_header(pickle.dumps({"state": [Canary()] * 200}, protocol=protocol))
    assert not Canary.opened


@pytest.mark.parametrize("data", [zipped(), torch_saved()], ids=["zip", "torch.save"])
def test_w6_zip_is_named_and_not_opened(data: bytes) -> None:
    error = refusal(data)
    assert "zip" in str(error)
    assert "torch.save" in str(error)
    assert not Canary.opened


def test_w6_legacy_torch_file_is_named_and_not_opened() -> None:
    assert "pickle" in refused_header(torch_saved(_use_new_zipfile_serialization=False))
    assert not Canary.opened


def test_w6_gzip_is_named_and_not_decompressed() -> None:
    bomb = gzip.compress(bytes(64 << 20), compresslevel=1)
    tracemalloc.start()
    try:
        assert "gzip" in refused_header(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["{}", '{"peft_type": "ADAKRON"}', '{\n "peft_type": "ADAKRON"\n}', '{"a":12,{"b": 1}']
)
def test_w6_json_is_named(text: str) -> None:
    error = refusal(text.encode())
    assert "JSON" in str(error)
    assert error.hint is not None
    assert "adapter_model.safetensors" in error.hint


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        tar(),
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"GGUF\x03\x00\x00\x00" + bytes(64),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', }",
        b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(64),
        b"<!DOCTYPE html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab",
        b"\x7fELF" + bytes(64),
        b"#!/bin/sh\necho",
        bytes(1024),
        b"\xff" * 1024,
    ],
    ids=["tar", "HDF5", "GGUF", "NPY", "ONNX", "HTML", "LFS pointer", "ELF", "script", "zeros", "ones"],
)
def test_w6_anything_else_is_refused(data: bytes) -> None:
    refused_header(data)


# W7: names.


@pytest.mark.parametrize(
    "name",
    ["\uff4cayers.0.a1.weight", "layers.\u0660.a1.weight", "head.weight\u200b", "a\nb", "a\x00", "\x1b[31m", "é"],
)
def test_w7_tensor_name_that_is_not_printable_ascii_is_refused_and_shown_escaped(name: str) -> None:
    assert "printable ASCII" in refused_header(safetensors_file({name: entry()}, bytes(24)))


def test_w7_endless_name_is_shown_cut() -> None:
    error = refusal(safetensors_file({"n" * 100_000: entry(dtype="I8")}, bytes(24)))
    assert error.tensor == "n" * 80


# Property: our reader is stricter than the library, never laxer.

integers = st.integers(-1, 60) | st.sampled_from([1 << 31, 1 << 47, 1 << 48, 1 << 64])
leaves = st.none() | st.booleans() | integers | st.floats() | st.sampled_from(["F32", "BF16", "I8", "", "pt", "\ud800"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
offsets = st.sampled_from([[0, 24], [24, 48], [0, 12], [12, 24], [24, 24], [0, 0]]) | st.lists(integers, max_size=3)
entries = (
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*DTYPE_BYTES, "F64"]) | values,
            "shape": st.sampled_from([[2, 3], [3, 2], [6], [0], []]) | st.lists(integers, max_size=5),
            "data_offsets": offsets,
        },
        optional={"more": values},
    )
    | values
)
headers = st.dictionaries(st.sampled_from(["a", "b", "é", "__metadata__", ""]), entries | st.just({"format": "pt"}))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(headers, st.sampled_from([0, 12, 24, 36, 48]), st.sampled_from(["", " ", "\n", "x"]), st.booleans())
@example({"a": entry()}, 24, " ", True)
def test_any_header_is_read_as_the_library_reads_it_or_refused(
    header: dict[str, Any], size: int, tail: str, ascii_only: bool
) -> None:
    text = (json.dumps(header, ensure_ascii=ascii_only) + tail).encode("utf-8", "surrogatepass")
    data = safetensors_file(text, bytes(size))
    try:
        ours = read_header(data)
    except FormatError:
        return
    theirs = {name: (view["dtype"], tuple(view["shape"]), len(view["data"])) for name, view in deserialize(data)}
    assert theirs == {name: (e.dtype, e.shape, e.end - e.begin) for name, e in ours.tensors.items()}
