import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from server.errors import MalformedBodyError, UnsupportedMediaTypeError
from server.json_body import MAX_DEPTH, check_json_content_type, decode_json, read_json

REFUSED = {
    "empty": b"",
    "blank": b" ",
    "binary": bytes(range(256)),
    "not utf-8": b'{"a": "\xff"}',
    "encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-16 without mark": '{"a": 1}'.encode("utf-16-le"),
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "-Infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "negative overflow": b'{"a": -1e999}',
    "4,000 digits": b'{"a": ' + b"1" * 4000 + b"}",
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "4,000 decimals": b'{"a": 0.' + b"1" * 4000 + b"}",
    "duplicate key": b'{"a": 1, "a": 2}',
    "nested duplicate key": b'{"a": [{"b": 1, "b": 1}]}',
    "duplicate key spelt with an escape": b'{"a": 1, "\\u0061": 2}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate in capitals": b'{"a": "\\uDC00"}',
    "lone surrogate in a key": b'{"\\ud800": 1}',
    "surrogates the wrong way round": b'["\\udc00\\ud800"]',
    "100,000 lists": b"[" * 100_000,
    "100,000 closed lists": b"[" * 100_000 + b"]" * 100_000,
    "33 lists": b"[" * 33 + b"]" * 33,
    "33 objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "two values": b"{} {}",
    "single quotes": b"{'a': 1}",
    "trailing comma": b"[1,]",
    "control character in a string": b'"\n"',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        decode_json(body)


def test_depth_of_32_passes() -> None:
    assert decode_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None


def test_brackets_inside_strings_are_no_depth() -> None:
    assert decode_json(json.dumps("[{" * 1000).encode()) == "[{" * 1000


def test_many_flat_objects_are_no_depth() -> None:
    assert decode_json(b"[" + b",".join([b"{}"] * 1000) + b"]") == [{}] * 1000


def test_a_whole_surrogate_pair_passes() -> None:
    assert decode_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_message_holds_nothing_of_the_body() -> None:
    with pytest.raises(MalformedBodyError) as caught:
        decode_json(b'{"password": "hunter2", oops}')
    assert "hunter2" not in caught.value.message
    assert "column" in caught.value.message


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=20,
    )
)
def test_whatever_json_can_say_comes_back(value: object) -> None:
    assert decode_json(json.dumps(value).encode()) == value
    assert decode_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_the_worst_bodies_are_refused() -> None:
    many_keys = b"{" + b",".join(b'"%d":1' % key for key in range(90_000)) + b',"1":1}'
    for body in (b"[" * 2**20, b'{"a":' * 2**17, many_keys, b"1" * 2**20):
        with pytest.raises(MalformedBodyError):
            decode_json(body)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/json;",
    ],
)
def test_content_types_that_are_json(content_type: str | None) -> None:
    check_json_content_type(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/jsonx",
        "application/json+x",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=" + "x" * 10_000,
    ],
)
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError) as caught:
        check_json_content_type(content_type)
    assert len(caught.value.message) < 150


async def test_read_json_looks_at_the_content_type_before_the_body() -> None:
    async def receive() -> dict[str, object]:
        raise AssertionError("the body was read")

    request = Request({"type": "http", "headers": [(b"content-type", b"text/plain")]}, receive)
    with pytest.raises(UnsupportedMediaTypeError):
        await read_json(request)
