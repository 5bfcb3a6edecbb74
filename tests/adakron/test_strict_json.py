"""JSON from strangers: every document that is not strict JSON is refused, and no type is converted."""

import json
from typing import Any

import pytest

from adakron.errors import ConfigError
from adakron.strict_json import exact_keys, number, numbers, parse_json_object, require, strings


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{} {}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": [-Infinity]}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 4000 + b"}",
        b'{"a": 0.' + b"1" * 4000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b'{"a": ' * 100_000,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"} x",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": [["\\ud800"]]}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
        b'{"a": "\x00"}',
        b"\x00" * 64,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_text_that_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="the document"):
        parse_json_object(text, "the document")


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"b": [{"a": 1, "\\u0061": 1}]}', '{"": 1, "": 1}']
)
def test_duplicate_key_at_any_level_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="stands twice"):
        parse_json_object(text, "the document")


def test_duplicate_key_with_control_characters_is_shown_escaped_and_cut() -> None:
    key = "\\r\\n" + "x" * 5000
    with pytest.raises(ConfigError) as caught:
        parse_json_object(f'{{"{key}": 1, "{key}": 2}}', "the document")
    assert str(caught.value).isprintable()
    assert caught.value.key is not None
    assert caught.value.key.isprintable()
    assert len(caught.value.key) < 200


def test_plain_json_is_parsed_as_json_says() -> None:
    text = ' {"a": [1, -2, 0.5, 1e3, true, false, null, "\\u00e9\\ud83d\\ude42"], "b": {"a": {}}}\n'
    assert parse_json_object(text, "x") == json.loads(text)
    assert parse_json_object(text.encode(), "x") == json.loads(text)


def test_minus_zero_is_no_integer() -> None:
    value = parse_json_object('{"a": -0}', "x")["a"]
    assert type(value) is float


def test_require_names_the_key_and_shows_little_of_what_was_found() -> None:
    require(True, "key", "anything", "x" * 10_000)
    with pytest.raises(ConfigError) as caught:
        require(False, "key", "a short text", "\n" * 10_000)
    assert caught.value.key == "key"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_exact_keys_names_the_unknown_before_the_missing() -> None:
    exact_keys({"a": 1, "b": 2}, ["b", "a"], "")
    with pytest.raises(ConfigError, match=r"^outer\.c: unknown key$"):
        exact_keys({"a": 1, "c": 2}, ["a", "b"], "outer.")
    with pytest.raises(ConfigError, match=r"^outer\.b: missing key$"):
        exact_keys({"a": 1}, ["a", "b"], "outer.")


@pytest.mark.parametrize("value", [None, True, "1", [1], {}])
def test_number_is_never_converted_from_another_type(value: Any) -> None:
    with pytest.raises(ConfigError, match="key"):
        number(value, "key")
    with pytest.raises(ConfigError, match="key"):
        numbers([1, value], "key")


@pytest.mark.parametrize("value", [None, "ab", ("a",), ["a", 1], {"a": 1}])
def test_strings_are_a_list_of_strings(value: Any) -> None:
    with pytest.raises(ConfigError, match="key"):
        strings(value, "key")
