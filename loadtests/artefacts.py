"""Artefacts that can be told by their answers, made from one that exists by changing nothing but the head's bias.

One label's bias is raised so far that no text outweighs it: whoever asks must get that label, with a score near 1.
Each artefact made here has bytes of its own. The golden examples move along, logits being linear in the bias.

Knows the safetensors container (8 bytes of header length, JSON header, data) and the names of a head's tensors.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loadtests.timeline import Signature

# From 1024 to 2048 steps of 8 are exact in F32, F16 and BF16 alike.
_BIAS, _BIAS_STEP, _BIAS_STEPS = 1024, 8, 128
_BIAS_TENSORS = ("head.bias", "head.out_proj.bias")


@dataclass(frozen=True, slots=True)
class SignatureArtefact:
    data: bytes
    signature: Signature


class ArtefactMaker(Protocol):
    """Makes artefacts by number, below `count`."""

    @property
    def count(self) -> int: ...

    def make(self, serial: int) -> SignatureArtefact: ...


class SignatureMaker:
    """Makes signature artefacts from the bytes of a single-label artefact.

    Raises ValueError if these are no such artefact.
    """

    def __init__(self, data: bytes) -> None:
        self._header, self._body = _split(data)
        self._config = _config(self._header)
        if self._config["problem_type"] != "single_label_classification":
            raise ValueError(f"expected a single-label artefact; found {self._config['problem_type']}")
        id2label = self._config["id2label"]
        self.labels = tuple(id2label[str(index)] for index in range(len(id2label)))
        self._bias = next((name for name in _BIAS_TENSORS if name in self._header), None)
        if self._bias is None:
            raise ValueError(f"expected one of the tensors {', '.join(_BIAS_TENSORS)}; found neither")

    @property
    def count(self) -> int:
        """How many different artefacts there are to make."""
        return _BIAS_STEPS * len(self.labels)

    def make(self, serial: int) -> SignatureArtefact:
        """The artefact with number `serial`; neighbours in number differ in their label.

        Raises ValueError from `count` on.
        """
        if not 0 <= serial < self.count:
            raise ValueError(f"expected a serial below {self.count}; got {serial}")
        step, winner = divmod(serial, len(self.labels))
        bias = np.zeros(len(self.labels), np.float32)
        bias[winner] = _BIAS + _BIAS_STEP * step
        data = self._with_bias(bias)
        return SignatureArtefact(data, Signature(hashlib.sha256(data).hexdigest(), self.labels[winner]))

    def _with_bias(self, bias: npt.NDArray[np.float32]) -> bytes:
        assert self._bias is not None
        entry = self._header[self._bias]
        begin, end = entry["data_offsets"]
        old = _decode(self._body[begin:end], entry["dtype"])
        metadata = dict(self._header["__metadata__"])
        if "adakron.expected" in metadata:
            metadata["adakron.expected"] = _moved(metadata["adakron.expected"], bias - old)
        header = json.dumps({**self._header, "__metadata__": metadata}, sort_keys=True, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        body = self._body[:begin] + _encode(bias, entry["dtype"]) + self._body[end:]
        return len(header).to_bytes(8, "little") + header + body


def find_base(folder: Path) -> Path:
    """The single-label artefact below `folder` with the most labels: with many, a wrong one is rarely right by chance.

    Raises FileNotFoundError if there is none.
    """
    counted = []
    for path in sorted(folder.rglob("adapter_model.safetensors")):
        config = _config(_split(path.read_bytes())[0])
        if config["problem_type"] == "single_label_classification":
            counted.append((len(config["id2label"]), path))
    if not counted:
        raise FileNotFoundError(
            f"{folder}: expected a single-label adapter_model.safetensors in it or below; found none"
        )
    return max(counted)[1]


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise ValueError("expected the bytes of a safetensors file") from error
    return header, data[8 + length :]


def _config(header: dict[str, Any]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(header["__metadata__"]["adakron.config"])
    except KeyError as error:
        raise ValueError("expected adakron.config in the file's __metadata__") from error
    return config


def _moved(expected_json: str, difference: npt.NDArray[np.float32]) -> str:
    expected = json.loads(expected_json)
    for example in expected["examples"]:
        example["logits"] = (np.array(example["logits"], np.float64) + difference).tolist()
    return json.dumps(expected, ensure_ascii=False)


def _decode(data: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of an F32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
