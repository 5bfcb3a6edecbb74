import re

import pytest

from server.errors import InvalidRequestError
from server.names import (
    REFERENCE_PATTERN,
    RESERVED_SEGMENTS,
    Reference,
    check_name,
    from_segment,
    parse_reference,
    to_segment,
)


@pytest.mark.parametrize("name", ["a", "sst2", "acme/spam", "0.1_b-c", "a.b/c-d", "a" * 64, "a" * 64 + "/" + "b" * 64])
def test_names_of_the_grammar_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *["", "A", "é", "１", "a b", "a\n", "a\x00", "-a", ".a", "_a", "a..b", "a--b", "a@1", "a" * 65],
        *["a/", "/a", "a//b", "a/b/c", "../a", "a%2fb", "a\\b", "a/" + "b" * 65],
    ],
)
def test_names_outside_the_grammar_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name)


@pytest.mark.parametrize("segment", sorted(RESERVED_SEGMENTS))
def test_reserved_segments_are_refused_in_either_place(segment: str) -> None:
    for name in (segment, f"acme/{segment}", f"{segment}/spam"):
        with pytest.raises(InvalidRequestError, match="reserved"):
            check_name(name)


@pytest.mark.parametrize("name", ["activated", "my-docs", "stats2", "infos/healthy", "openapi.jsonl"])
def test_names_that_look_like_reserved_ones_pass(name: str) -> None:
    assert check_name(name) == name


def test_reference_without_version_means_the_active_one() -> None:
    assert parse_reference("acme/spam") == Reference("acme/spam", None)


def test_reference_with_version_pins_it() -> None:
    assert parse_reference("acme/spam@12") == Reference("acme/spam", 12)


def test_reference_with_content_pins_that() -> None:
    reference = parse_reference(f"acme/spam@sha256:{'0a' * 32}")
    assert (reference, reference.is_pinned) == (Reference("acme/spam", None, "0a" * 32), True)
    assert re.fullmatch(REFERENCE_PATTERN, f"acme/spam@sha256:{'0a' * 32}")


@pytest.mark.parametrize("content", ["", "0a", "0A" * 32, "0a" * 33, "0g" * 32])
def test_malformed_content_is_refused(content: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a version"):
        parse_reference(f"sst2@sha256:{content}")


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "1.0", "x", "1@2", "１", "1" * 10, " 1"])
def test_malformed_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a version"):
        parse_reference(f"sst2@{version}")


def test_refusal_names_the_field_and_quotes_little() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_reference("X" * 10_000, param="items.3.adapter")
    assert caught.value.param == "items.3.adapter"
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(("name", "segment"), [("sst2", "sst2"), ("acme/spam", "acme--spam"), ("a-b/c@3", "a-b--c@3")])
def test_a_name_as_a_segment_and_back(name: str, segment: str) -> None:
    assert to_segment(name) == segment
    assert from_segment(segment) == name


def test_a_segment_with_two_separators_is_no_name() -> None:
    with pytest.raises(InvalidRequestError):
        check_name(from_segment("a--b--c"))
