"""The safetensors container, checked before anything is parsed or allocated.

The library promises memory safety, not fitness: this refuses what the format allows but an adapter never needs
(duplicate keys, holes, foreign dtypes, endless headers). Knows bytes; nothing of adapters.
Source of the format: the safetensors README, section "Format".
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adakron.errors import ConfigError, DtypeError, HeaderError
from adakron.strict_json import parse_json_object

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_METADATA_CHARS = 1 << 19
MAX_METADATA_KEYS = 256
MAX_DIMENSIONS = 4
DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})

_FOREIGN = (
    (
        b"PK\x03\x04",
        "a zip archive, as torch.save writes it",
        "convert the checkpoint to safetensors; pickles are never read",
    ),
    *(
        (b"\x80" + bytes([protocol]), "a pickle", "convert the checkpoint to safetensors; pickles are never read")
        for protocol in (2, 3, 4, 5)
    ),
    (b"\x1f\x8b", "gzip data", "send the file itself, not an archive of it"),
    (b"{", "JSON text", "send adapter_model.safetensors, not adapter_config.json"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """dtype: a key of DTYPE_BYTES; begin, end: byte range in the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(data: bytes) -> Header:
    """Check the whole container and return its header.

    Raises HeaderError for the container, DtypeError for a dtype other than F32, F16, BF16.
    """
    if data[8:9] != b"{":  # the first 8 bytes alone prove nothing: a header of 640 bytes starts like a pickle
        _refuse_foreign(data)
    if len(data) < 8:
        raise HeaderError(f"expected a safetensors file; found {len(data)} bytes, too few for its header")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        _refuse_foreign(data)
        raise HeaderError(f"expected a header of at most {MAX_HEADER_BYTES} bytes; found one that claims {length}")
    if 8 + length > len(data):
        raise HeaderError(f"the header claims {length} bytes, the file has {len(data)}: it is cut short")
    if data[8:9] != b"{":
        raise HeaderError("expected a header that begins with {")
    try:
        raw = parse_json_object(data[8 : 8 + length], "safetensors header")
    except ConfigError as error:
        raise HeaderError(str(error)) from error
    metadata = _metadata(raw.pop("__metadata__", {}))
    if len(raw) > MAX_TENSORS:
        raise HeaderError(f"expected at most {MAX_TENSORS} tensors; found {len(raw)}")
    tensors = {name: _entry(name, value) for name, value in raw.items()}
    _check_offsets(tensors, len(data) - 8 - length)
    return Header(MappingProxyType(tensors), MappingProxyType(metadata), 8 + length)


def _refuse_foreign(data: bytes) -> None:
    for magic, what, hint in _FOREIGN:
        if data.startswith(magic):
            raise HeaderError(f"expected a safetensors file; found {what}", hint=hint)


def _metadata(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise HeaderError("__metadata__: expected an object of strings")
    if sum(len(key) + len(value) for key, value in raw.items()) > MAX_METADATA_CHARS:
        raise HeaderError(f"__metadata__: expected at most {MAX_METADATA_CHARS} characters")
    if len(raw) > MAX_METADATA_KEYS:
        raise HeaderError(f"__metadata__: expected at most {MAX_METADATA_KEYS} keys; found {len(raw)}")
    if any(_CONTROL.search(text) for item in raw.items() for text in item):
        raise HeaderError("__metadata__: expected no control characters but tabs and line feeds")
    return raw


def _entry(name: str, raw: Any) -> TensorEntry:
    shown = repr(name[:80])[1:-1]
    if not name.isascii() or not name.isprintable():
        raise HeaderError(f"tensor name '{shown}': expected printable ASCII")
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{shown}: expected exactly dtype, shape and data_offsets", tensor=shown)
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        found = repr(str(dtype)[:20])
        raise DtypeError(
            f"{shown}: expected dtype F32, F16 or BF16; found {found}",
            tensor=shown,
            expected="F32, F16 or BF16",
            found=found[1:-1],
        )
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"{shown}: shape must be at most {MAX_DIMENSIONS} integers >= 0", tensor=shown)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"{shown}: data_offsets must be two ascending integers", tensor=shown)
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise HeaderError(
            f"{shown}: its shape takes {expected} bytes, its offsets span {offsets[1] - offsets[0]}", tensor=shown
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_offsets(tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """The ranges cover the data section exactly: from 0, no overlap, no hole, nothing after."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise HeaderError(
                f"{name[:80]}: expected its data at byte {position}; found {entry.begin}", tensor=name[:80]
            )
        position = entry.end
    if position != data_bytes:
        raise HeaderError(f"the tensors take {position} bytes, the file holds {data_bytes}: it is cut short or padded")
