"""The binary form read and written: round trips, and every length that lies."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialects.backend import Text
from server.dialects.tensors import Tensor, read_elements, read_infer, write_elements, write_infer
from server.errors import InvalidRequestError, MalformedBodyError, ServerError

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12)


def binary(inputs: list[tuple[str, list[int], bytes]], **more: Any) -> tuple[bytes, int]:
    """A body in the binary form, and the length of its JSON."""
    described = [
        {"name": name, "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        for name, shape, data in inputs
    ]
    head = json.dumps({"inputs": described, **more}).encode()
    return head + b"".join(data for _, _, data in inputs), len(head)


@given(TEXTS)
def test_texts_survive_the_binary_form(texts: list[str]) -> None:
    body, header_bytes = binary([("text", [len(texts)], write_elements([text.encode() for text in texts]))])
    assert read_infer(body, header_bytes)[1] == [Text(text) for text in texts]


@given(TEXTS)
def test_texts_survive_json(texts: list[str]) -> None:
    one = {"name": "x", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    nested = {**one, "shape": [len(texts), 1], "data": [[text] for text in texts]}
    for tensor in (one, nested):
        assert read_infer(json.dumps({"inputs": [tensor]}).encode(), None)[1] == [Text(text) for text in texts]


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_whatever_is_cut_off_or_added_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    whole = write_elements(elements)
    assert read_elements(whole, len(elements), "x") == elements
    for n_elements in (len(elements) - 1, len(elements) + 1):
        if n_elements >= 0:
            with pytest.raises(MalformedBodyError):
                read_elements(whole, n_elements, "x")
    if whole:
        with pytest.raises(MalformedBodyError):
            read_elements(whole[: data.draw(st.integers(0, len(whole) - 1))], len(elements), "x")
    with pytest.raises(MalformedBodyError):
        read_elements(whole + data.draw(st.binary(min_size=1, max_size=9)), len(elements), "x")


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400)))
def test_no_bytes_do_worse_than_a_refusal(body: bytes, header_bytes: int | None) -> None:
    try:
        _, rows = read_infer(body, header_bytes)
    except (MalformedBodyError, InvalidRequestError):
        return
    assert rows


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 300))
def test_a_valid_head_before_any_bytes_does_no_worse(tail: bytes, size: int, n_elements: int) -> None:
    tensor = {"name": "x", "shape": [n_elements], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    try:
        _, rows = read_infer(head + tail, len(head))
    except (MalformedBodyError, InvalidRequestError):
        return
    assert len(rows) == n_elements > 0
    assert size == len(tail)


def test_an_element_is_its_length_little_endian_and_its_bytes() -> None:
    assert write_elements([b"hello", b""]) == b"\x05\0\0\0hello\0\0\0\0"
    assert read_elements(b"\x01\0\0\0a\x02\0\0\0bc", 2, "x") == [b"a", b"bc"]


def test_length_zero_makes_the_whole_body_one_text() -> None:
    assert read_infer("naïve ☃".encode(), 0)[1] == [Text("naïve ☃")]


def test_pairs_come_in_either_form() -> None:
    rows = [Text("a", "b"), Text("c", "d")]
    four = write_elements([b"a", b"b", b"c", b"d"])
    assert read_infer(*binary([("text", [2, 2], four)]))[1] == rows
    first, second = write_elements([b"a", b"c"]), write_elements([b"b", b"d"])
    assert read_infer(*binary([("text", [2], first), ("text_pair", [2], second)]))[1] == rows
    assert read_infer(*binary([("text_pair", [2, 1], second), ("input-0", [2, 1], first)]))[1] == rows


ONE = write_elements([b"a"])
LONG_SHAPE = [2**31, 2**31]


@pytest.mark.parametrize(
    ("body", "header_bytes", "error"),
    [
        (*binary([("text", [1], b"\xff\xff\xff\xffab")]), MalformedBodyError),
        (*binary([("text", [1], write_elements([b"\xff"]))]), MalformedBodyError),
        (*binary([("text", [2], ONE)]), MalformedBodyError),
        (*binary([("text", [0], b"")]), InvalidRequestError),
        (*binary([("text", LONG_SHAPE, ONE)]), InvalidRequestError),
        (*binary([("text", [257], ONE)]), InvalidRequestError),
        (*binary([("text", [1, 3], write_elements([b"a"] * 3))]), InvalidRequestError),
        (*binary([("text", [1, 1, 1], ONE)]), InvalidRequestError),
        (*binary([("text", [], ONE)]), InvalidRequestError),
        (*binary([("text", [-1], ONE)]), InvalidRequestError),
        (*binary([("a", [1], ONE), ("b", [1], ONE)]), InvalidRequestError),
        (*binary([("text_pair", [1], ONE), ("text_pair", [1], ONE)]), InvalidRequestError),
        (*binary([("a", [1], ONE), ("text_pair", [2], write_elements([b"a", b"b"]))]), InvalidRequestError),
        (binary([("text", [1], ONE)])[0] + b"x", binary([("text", [1], ONE)])[1], MalformedBodyError),
        (binary([("text", [1], ONE)])[0][:-1], binary([("text", [1], ONE)])[1], MalformedBodyError),
        (b"{}", 3, MalformedBodyError),
        (b"{}", 1, MalformedBodyError),
        (b"", None, MalformedBodyError),
        (b"\xff", 0, MalformedBodyError),
        (b"[]", None, InvalidRequestError),
        (b'{"inputs": []}', None, InvalidRequestError),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}', None, InvalidRequestError),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [1]}]}', None, InvalidRequestError),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": "a"}]}', None, InvalidRequestError),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"}]}', None, InvalidRequestError),
        (b'{"inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}', None, InvalidRequestError),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [["a", 1]]}]}',
            None,
            InvalidRequestError,
        ),
        (
            b'{"inputs": [{"name": "x", "shape": [0], "datatype": "BYTES", "data": [], "parameters": '
            b'{"binary_data_size": 0}}]}',
            None,
            InvalidRequestError,
        ),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": '
            b'{"shared_memory_region": "r"}}]}',
            None,
            InvalidRequestError,
        ),
        (b'{"inputs": NaN}', None, MalformedBodyError),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_refusals(body: bytes, header_bytes: int | None, error: type[ServerError]) -> None:
    with pytest.raises(error):
        read_infer(body, header_bytes)


def test_outputs_are_written_in_order_each_in_its_form() -> None:
    scores = Tensor("scores", "FP32", (2, 2), [0.25, 0.75, 1.0, 0.0])
    label = Tensor("label", "BYTES", (2,), ["spam", "süß"])
    body, header_bytes = write_infer({"model_name": "x"}, [(label, True), (scores, False), (scores, True)])
    assert header_bytes is not None
    head = json.loads(body[:header_bytes])
    assert [output["name"] for output in head["outputs"]] == ["label", "scores", "scores"]
    assert head["outputs"][1]["data"] == [0.25, 0.75, 1.0, 0.0]
    sizes = [head["outputs"][index]["parameters"]["binary_data_size"] for index in (0, 2)]
    tail = body[header_bytes:]
    assert len(tail) == sum(sizes)
    assert read_elements(tail[: sizes[0]], 2, "label") == [b"spam", "süß".encode()]
    np.testing.assert_array_equal(np.frombuffer(tail[sizes[0] :], dtype="<f4"), [0.25, 0.75, 1.0, 0.0])


def test_a_reply_without_binary_tensors_is_json_alone() -> None:
    body, header_bytes = write_infer({}, [(Tensor("label", "BYTES", (1,), ["a"]), False)])
    assert header_bytes is None
    assert json.loads(body) == {"outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
