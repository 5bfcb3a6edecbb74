"""The adapter artefact: one safetensors file that is complete, and the folder people know around it.

    adapter_config.json, adapter_model.safetensors, expected.json, README.md

Bytes are read once; the bytes that are hashed are the bytes that are validated and kept. Nothing is memory-mapped:
a mapped file that changes would change the weights. Knows files and tensors; nothing of engines or HTTP.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from adakron.config import AdapterConfig
from adakron.errors import (
    ConfigError,
    FormatError,
    HeaderError,
    MissingTensorError,
    NonFiniteError,
    ShapeError,
    UnexpectedTensorError,
)
from adakron.header import Header, read_header
from adakron.heads import head_shapes
from adakron.strict_json import parse_json_object

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
EXPECTED_FILE = "expected.json"
MAX_FILE_BYTES = 64 << 20
MAX_EXAMPLES = 8
MAX_EXAMPLE_CHARS = 2000
_METADATA_KEYS = {"format", "adakron.format_version", "adakron.config", "adakron.expected"}


@dataclass(frozen=True, slots=True)
class Example:
    """A golden example: a text and the logits, in float32, that the adapter gave for it when it was made."""

    text: str
    text_pair: str | None
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One trained adapter: configuration, tensors, golden examples, and the very bytes they came from.

    tensors  name -> tensor on the CPU, with memory of its own; names and shapes as `expected_shapes` says
    sha256   of the file's bytes: the adapter's identity, 64 hex digits; adapters are equal if it is
    """

    config: AdapterConfig = field(compare=False)
    tensors: Mapping[str, Tensor] = field(compare=False, repr=False)
    expected: tuple[Example, ...] = field(compare=False, repr=False)
    sha256: str
    data: bytes = field(compare=False, repr=False)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def parameters(self) -> int:
        """Trainable parameters, head included."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @classmethod
    def build(cls, config: AdapterConfig, tensors: Mapping[str, Tensor], expected: Sequence[Example] = ()) -> "Adapter":
        """A new adapter from tensors in memory. Raises FormatError if they are not what `config` implies."""
        return cls.from_bytes(_serialise(config, tensors, expected))

    @classmethod
    def from_bytes(cls, data: bytes, *, sha256: str | None = None) -> "Adapter":
        """Validate a whole artefact file.

        sha256  of `data`, from whoever has just computed it of these very bytes

        Every expected tensor must be there with its shape, no other, every value finite; the metadata must hold the
        configuration. Raises FormatError (with the tensor, expected and found) or ConfigError (with the key).
        """
        if len(data) > MAX_FILE_BYTES:
            raise FormatError(f"expected at most {MAX_FILE_BYTES} bytes; found {len(data)}")
        header = read_header(data)
        config = _config(header)
        _check_tensors(header, config)
        tensors = _load(data)
        for name, tensor in tensors.items():
            _check_finite(name, tensor)
        expected = parse_expected(header.metadata.get("adakron.expected", _NO_EXAMPLES), config)
        return cls(config, tensors, expected, sha256 or hashlib.sha256(data).hexdigest(), data)

    @classmethod
    def from_file(cls, path: str | Path) -> "Adapter":
        """Read and validate one safetensors file. Raises FormatError, ConfigError; FormatError if it cannot be read."""
        return cls.from_bytes(read_regular(Path(path), MAX_FILE_BYTES))

    @classmethod
    def from_folder(cls, path: str | Path) -> "Adapter":
        """Read a folder; its JSON files, where present, must say what the safetensors file's metadata says."""
        folder = Path(path)
        adapter = cls.from_file(folder / WEIGHTS_FILE)
        if (folder / CONFIG_FILE).exists():
            beside = AdapterConfig.from_json(read_regular(folder / CONFIG_FILE, 1 << 20))
            if beside != adapter.config:
                raise FormatError(
                    f"{CONFIG_FILE} contradicts the configuration inside {WEIGHTS_FILE}",
                    hint=f"delete {CONFIG_FILE}: the safetensors file is complete without it",
                )
        if (folder / EXPECTED_FILE).exists():
            text = read_regular(folder / EXPECTED_FILE, 1 << 20)
            if parse_expected(text, adapter.config) != adapter.expected:
                raise FormatError(f"{EXPECTED_FILE} contradicts the examples inside {WEIGHTS_FILE}")
        return adapter

    def to_bytes(self) -> bytes:
        """The artefact file, the very bytes whose hash is `sha256`."""
        return self.data

    def write(self, folder: str | Path) -> None:
        """Write adapter_model.safetensors, adapter_config.json and, if there are examples, expected.json."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / WEIGHTS_FILE).write_bytes(self.data)
        (target / CONFIG_FILE).write_text(self.config.to_json() + "\n", encoding="utf-8")
        if self.expected:
            (target / EXPECTED_FILE).write_text(expected_json(self.expected) + "\n", encoding="utf-8")
        else:
            (target / EXPECTED_FILE).unlink(missing_ok=True)  # of the adapter that was here before


def expected_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that an adapter of this configuration holds, no other being allowed."""
    width, shape = config.hidden_size, config.adakron
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.first_layer, config.num_hidden_layers):
        for name, rows, columns in (
            ("a1", shape.quotient, width),
            ("a2", shape.factor, width),
            ("up", width, shape.bottleneck),
        ):
            tensors[f"layers.{layer}.{name}.weight"] = (rows, columns)
            tensors[f"layers.{layer}.{name}.bias"] = (rows,)
    return tensors | head_shapes(config)


def expected_json(examples: Sequence[Example]) -> str:
    """The content of expected.json."""
    rows = [{"text": e.text, "text_pair": e.text_pair, "logits": list(e.logits)} for e in examples]
    return json.dumps({"format_version": 1, "dtype": "float32", "examples": rows}, ensure_ascii=False, indent=1)


def parse_expected(text: str | bytes, config: AdapterConfig) -> tuple[Example, ...]:
    """Parse expected.json for an adapter of this configuration. Raises ConfigError naming the key."""
    raw = parse_json_object(text, "expected.json")
    keys = set(raw) == {"format_version", "dtype", "examples"}
    version = raw.get("format_version")
    if not keys or type(version) is not int or version != 1 or raw["dtype"] != "float32":
        raise ConfigError(
            'expected.json: expected {"format_version": 1, "dtype": "float32", "examples": [..]}', key="expected"
        )
    rows = raw["examples"]
    if not isinstance(rows, list) or len(rows) > MAX_EXAMPLES:
        raise ConfigError(f"expected.json: examples must be a list of at most {MAX_EXAMPLES}", key="expected.examples")
    return tuple(_example(row, index, config) for index, row in enumerate(rows))


_NO_EXAMPLES = expected_json(())


def _example(row: Any, index: int, config: AdapterConfig) -> Example:
    where = f"expected.examples[{index}]"
    if not isinstance(row, dict) or set(row) != {"text", "text_pair", "logits"}:
        raise ConfigError(f"{where}: expected exactly text, text_pair and logits", key=where)
    text, pair, logits = row["text"], row["text_pair"], row["logits"]
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_EXAMPLE_CHARS:
        raise ConfigError(f"{where}.text: expected 1 to {MAX_EXAMPLE_CHARS} characters", key=where)
    is_text = isinstance(pair, str) and bool(pair.strip()) and len(pair) <= MAX_EXAMPLE_CHARS
    if not (is_text if config.takes_pair else pair is None):
        raise ConfigError(f"{where}.text_pair: expected {'a text' if config.takes_pair else 'null'}", key=where)
    numbers = isinstance(logits, list) and all(type(x) in (int, float) and math.isfinite(x) for x in logits)
    if not numbers or len(logits) != config.num_labels:
        raise ConfigError(f"{where}.logits: expected {config.num_labels} finite numbers", key=where)
    return Example(text, pair, tuple(float(x) for x in logits))


def _config(header: Header) -> AdapterConfig:
    if "adakron.config" not in header.metadata:
        raise FormatError(
            _foreign_adapter(header), hint="an AdaKron artefact carries its configuration in __metadata__"
        )
    version = header.metadata.get("adakron.format_version")
    if version != "1":  # before anything that a newer format may have changed
        raise FormatError(
            f"__metadata__: adakron.format_version must be '1'; found {str(version)[:20]!r}",
            expected="1",
            found=str(version)[:20],
            hint="upgrade adakron to read a newer format",
        )
    unknown = sorted(set(header.metadata) - _METADATA_KEYS)
    if unknown:
        raise FormatError(f"__metadata__: unknown key {unknown[0][:80]!r}")
    return AdapterConfig.from_json(header.metadata["adakron.config"])


def _foreign_adapter(header: Header) -> str:
    names = " ".join(list(header.tensors)[:50])
    if ".lora_A." in names or ".lora_B." in names:
        return "this is a PEFT LoRA adapter, not an AdaKron adapter"
    if ".adapters." in names:
        return "this is an AdapterHub adapter, not an AdaKron adapter"
    return "__metadata__ holds no adakron.config: this is not an AdaKron adapter"


def _check_tensors(header: Header, config: AdapterConfig) -> None:
    expected = expected_shapes(config)
    for name in sorted(set(expected) - set(header.tensors)):
        raise MissingTensorError(f"{name}: missing", tensor=name, expected=str(list(expected[name])), found="nothing")
    for name in sorted(set(header.tensors) - set(expected)):
        found = str(list(header.tensors[name].shape))
        raise UnexpectedTensorError(
            f"{name[:80]}: not a tensor of this configuration", tensor=name[:80], expected="nothing", found=found
        )
    for name, shape in expected.items():
        found_shape = header.tensors[name].shape
        if found_shape != shape:
            raise ShapeError(
                f"{name}: expected shape {list(shape)}; found {list(found_shape)}",
                tensor=name,
                expected=str(list(shape)),
                found=str(list(found_shape)),
                hint="the configuration and the tensors disagree; export the adapter again",
            )


def _check_finite(name: str, tensor: Tensor) -> None:
    # NaN passes through both, and neither is infinite unless some value is: a tenth of the time of isfinite.
    if all(math.isfinite(extreme.item()) for extreme in torch.aminmax(tensor)):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise NonFiniteError(
        f"{name}: {bad} of {tensor.numel()} values are NaN or infinite",
        tensor=name,
        expected="finite values",
        found=f"{bad} NaN or infinite",
    )


def _load(data: bytes) -> dict[str, Tensor]:
    """The tensors of a checked container, with memory of their own: the library copies each out of `data`."""
    try:
        return load(data)
    except Exception as error:  # what our checks let pass and the library does not is refused all the same
        raise HeaderError(f"safetensors refuses the file: {str(error)[:200]}") from error


def _serialise(config: AdapterConfig, tensors: Mapping[str, Tensor], expected: Sequence[Example]) -> bytes:
    """safetensors bytes with a canonical header: the library orders metadata at random, and identity is content."""
    metadata = {
        "format": "pt",
        "adakron.format_version": "1",
        "adakron.config": json.dumps(config.to_dict(), ensure_ascii=False),
    }
    if expected:
        metadata["adakron.expected"] = expected_json(expected)
    raw = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata=metadata
    )
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def read_regular(path: Path, cap: int) -> bytes:
    """The bytes of a regular file, opened once; no link at its end is followed and no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f"cannot read {path.name!r}: {reason}", hint="name an existing file") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError(f"cannot read {path.name!r}: not a regular file", hint="name an existing file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(cap + 1)
    except OSError as error:
        raise FormatError(f"cannot read {path.name!r}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > cap:
        raise FormatError(f"{path.name}: expected at most {cap} bytes")
    return data
