"""Tensors of the Open Inference Protocol V2 on the wire: text in, scores and labels out, in JSON or binary.

    JSON     {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
    binary   the same without `data`, with parameters.binary_data_size; after the JSON, whose length is a header, come
             the tensors' bytes in the order of the JSON. A BYTES element is a uint32 of its length, little-endian,
             then that many bytes.

Every length is held to what is there before anything is made of it. Knows nothing of adapters or HTTP.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.dialects.backend import Text, parsed
from server.errors import InvalidRequestError, MalformedBodyError
from server.json_body import decode_json
from server.schemas import MAX_ROWS, MAX_TOP_K

MAX_NAME_CHARACTERS = 256
PAIR = "text_pair"
_LENGTH = struct.Struct("<I")

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Dimension = Annotated[int, Field(ge=0, le=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class InputParameters(_Strict):
    """Of one input: how many of the bytes behind the JSON are its own."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class InputTensor(_Strict):
    """Text: one element a row, or two for pairs. `text_pair` names the tensor of second texts; other names are free."""

    name: Name
    shape: Annotated[list[Dimension], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Any = Field(None, description="strings, flat or nested; absent in the binary form")
    parameters: InputParameters = Field(default_factory=InputParameters)


class OutputParameters(_Strict):
    """Of one output. classification: instead of the tensor, its k highest as `value:index:label`."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = None


class WantedOutput(_Strict):
    """One of `scores`, `label` and, with top_k, `labels`."""

    name: Name
    parameters: OutputParameters = Field(default_factory=OutputParameters)


class InferParameters(_Strict):
    """Of the call. timeout is in microseconds. priority and sequence_* are taken and change nothing."""

    binary_data_output: bool = False
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(
        None, description="`scores` holds the k highest, and `labels` their labels"
    )
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    adapter_version: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern="^[1-9][0-9]{0,8}$")] | None = None
    adapter_id: str | None = None
    truncate: bool = True
    timeout: Annotated[int, Field(ge=0)] | None = None
    priority: int | None = None
    sequence_id: int | str | None = None
    sequence_start: bool | None = None
    sequence_end: bool | None = None


class InferRequest(_Strict):
    """The JSON of POST /v2/models/{model}/infer."""

    id: Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)] | None = None
    model_name: str | None = None
    model_version: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=2)]
    outputs: Annotated[list[WantedOutput], Field(max_length=8)] | None = None
    parameters: InferParameters = Field(default_factory=InferParameters)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output: FP32 holds floats, BYTES strings; flat, in row-major order."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: tuple[int, ...]
    data: Sequence[float] | Sequence[str]

    def to_bytes(self) -> bytes:
        """The binary form."""
        if self.datatype == "FP32":
            return struct.pack(f"<{len(self.data)}f", *self.data)
        return write_elements([str(text).encode() for text in self.data])


def read_infer(body: bytes, header_bytes: int | None) -> tuple[InferRequest, list[Text]]:
    """The request and its rows.

    header_bytes  of the JSON, as Inference-Header-Content-Length has it; None where all of the body is JSON; 0 where
                  the whole body is one text

    Raises MalformedBodyError (400), InvalidRequestError (422).
    """
    if header_bytes == 0:
        whole = InputTensor(name="text", shape=[1], datatype="BYTES")
        return InferRequest(inputs=[whole]), [Text(_decoded(body, "the body"))]
    if header_bytes is not None and header_bytes > len(body):
        raise MalformedBodyError(
            f"Inference-Header-Content-Length is {header_bytes}, and the body has {len(body)} bytes"
        )
    head, tail = (body, b"") if header_bytes is None else (body[:header_bytes], body[header_bytes:])
    request = parsed(InferRequest, decode_json(head))
    tensors = []
    for index, tensor in enumerate(request.inputs):
        place = f"inputs.{index}"
        n_elements = math.prod(tensor.shape)
        if n_elements > 2 * MAX_ROWS:
            raise InvalidRequestError(
                f"{place}.shape: {n_elements} texts; a call has at most {MAX_ROWS} rows", param=f"{place}.shape"
            )
        size_bytes = tensor.parameters.binary_data_size
        if size_bytes is None:
            tensors.append(_from_json(tensor, n_elements, place))
            continue
        if tensor.data is not None:
            raise InvalidRequestError(f"{place}: has both data and binary_data_size", param=place)
        if size_bytes > len(tail):
            raise MalformedBodyError(f"{place}: binary_data_size is {size_bytes}; {len(tail)} bytes are left")
        elements = read_elements(tail[:size_bytes], n_elements, place)
        tensors.append([_decoded(element, f"{place}, element {number}") for number, element in enumerate(elements)])
        tail = tail[size_bytes:]
    if tail:
        raise MalformedBodyError(f"{len(tail)} bytes behind the JSON belong to no input")
    return request, _rows(request.inputs, tensors)


def read_elements(data: bytes, n_elements: int, place: str) -> list[bytes]:
    """The BYTES elements in `data`, which has to hold exactly so many. Raises MalformedBodyError (400)."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(elements) == n_elements:
            raise MalformedBodyError(f"{place}: has more bytes than its {n_elements} elements")
        if offset + _LENGTH.size > len(data):
            raise MalformedBodyError(f"{place}: ends within the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if length > len(data) - offset:
            raise MalformedBodyError(
                f"{place}: element {len(elements)} should have {length} bytes; {len(data) - offset} are left"
            )
        elements.append(data[offset : offset + length])
        offset += length
    if len(elements) != n_elements:
        raise MalformedBodyError(f"{place}: holds {len(elements)} elements; its shape says {n_elements}")
    return elements


def write_elements(elements: Sequence[bytes]) -> bytes:
    """What `read_elements` reads."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def write_infer(head: Mapping[str, object], outputs: Sequence[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """The body of a reply, and how long its JSON is where anything follows it.

    head     model_name and what else is not a tensor
    outputs  tensors, and whether each goes behind the JSON
    """
    described: list[dict[str, object]] = []
    tail = b""
    for tensor, is_binary in outputs:
        entry: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if is_binary:
            data = tensor.to_bytes()
            tail += data
            entry["parameters"] = {"binary_data_size": len(data)}
        else:
            entry["data"] = list(tensor.data)
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False, separators=(",", ":")).encode()
    return text + tail, len(text) if any(is_binary for _, is_binary in outputs) else None


def _from_json(tensor: InputTensor, n_elements: int, place: str) -> list[str]:
    flat = _flat(tensor.data)
    if flat is None:
        raise InvalidRequestError(f"{place}.data: should be a list of strings, flat or nested", param=f"{place}.data")
    if len(flat) != n_elements:
        raise InvalidRequestError(
            f"{place}.data: {len(flat)} strings; the shape says {n_elements}", param=f"{place}.shape"
        )
    return flat


def _flat(data: object) -> list[str] | None:
    if not isinstance(data, list):
        return None
    flat: list[str] = []
    for one in data:
        inner = one if isinstance(one, list) else [one]
        if not all(isinstance(text, str) for text in inner):
            return None
        flat += inner
    return flat


def _decoded(element: bytes, what: str) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"{what} is not UTF-8: byte {error.start}") from error


def _rows(inputs: Sequence[InputTensor], tensors: Sequence[list[str]]) -> list[Text]:
    """Rows of one tensor [N], [N, 1] or [N, 2], or of two tensors of N each."""
    if len(inputs) == 1:
        if inputs[0].shape[1:] == [2]:
            flat = iter(tensors[0])
            return [Text(text, text_pair) for text, text_pair in zip(flat, flat, strict=True)]
        if len(inputs[0].shape) == 1 or inputs[0].shape[1] == 1:
            return _some([Text(text) for text in tensors[0]])
        raise InvalidRequestError("inputs.0.shape: should be [N], [N, 1], or [N, 2] for pairs", param="inputs.0.shape")
    seconds = [index for index, tensor in enumerate(inputs) if tensor.name == PAIR]
    if len(seconds) != 1:
        raise InvalidRequestError(f"inputs: of two tensors, one should be named {PAIR}", param="inputs")
    second = tensors[seconds[0]]
    first = tensors[1 - seconds[0]]
    if len(first) != len(second):
        raise InvalidRequestError(f"inputs: {len(first)} texts and {len(second)} of {PAIR}", param="inputs")
    return _some([Text(text, text_pair) for text, text_pair in zip(first, second, strict=True)])


def _some(rows: list[Text]) -> list[Text]:
    if not rows:
        raise InvalidRequestError("inputs: no text at all", param="inputs")
    return rows
