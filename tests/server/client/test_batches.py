"""Cutting: every request fits the server's limits, nothing is lost or reordered, and texts are read as needed."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import schemas
from server.client import batches
from server.client.batches import MAX_BODY_BYTES, MAX_ROWS, Item, body_of, cut, encoded

ITEMS = st.builds(
    Item, st.text(max_size=20_000), st.none() | st.text(max_size=9), st.sampled_from([None, "sst2", "a/b"])
)


def test_limits_are_the_server_s() -> None:
    assert (MAX_ROWS, MAX_BODY_BYTES) == (schemas.MAX_ROWS, schemas.MAX_BODY_BYTES)


@given(st.lists(ITEMS, max_size=300))
def test_every_request_fits_and_holds_its_texts_in_order(items: list[Item]) -> None:
    found = list(cut(items, "stsb"))
    assert [item for batch in found for item in batch] == items
    for batch in found:
        assert 1 <= len(batch) <= MAX_ROWS
        assert len(encoded(body_of(batch, "stsb"))) <= MAX_BODY_BYTES or len(batch) == 1


def test_large_texts_are_cut_by_bytes() -> None:
    found = list(cut(["é" * 200_000] * 5, "sst2"))
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert all(len(encoded(body_of(batch, "sst2"))) <= MAX_BODY_BYTES for batch in found)


def test_texts_are_read_as_they_are_asked_for() -> None:
    endless = cut((str(n) for n in itertools.count()), "sst2")
    assert next(endless)[-1].text == "127"


@pytest.mark.parametrize("text", ["one text", Item("one text")])
def test_one_text_where_several_belong_is_not_taken_for_its_letters(text: Any) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        next(cut(text, "sst2"))


def test_forms_of_a_body() -> None:
    plain, pair, own = Item("a"), Item("a", "b"), Item("a", adapter="x")
    assert body_of([plain, pair], "s") == {"adapter": "s", "inputs": ["a", {"text": "a", "text_pair": "b"}]}
    assert body_of([plain, own], "s") == {"items": [{"adapter": "s", "text": "a"}, {"adapter": "x", "text": "a"}]}
    with pytest.raises(ValueError, match="names no adapter"):
        body_of([own, plain], None)


def test_a_string_a_pair_and_an_item_are_texts() -> None:
    assert [batches.as_item(text) for text in ("a", ("a", "b"), Item("c"))] == [Item("a"), Item("a", "b"), Item("c")]


def test_half_a_surrogate_pair_is_left_to_the_server_to_refuse() -> None:
    assert encoded({"text": "\ud800"}) == b'{"text":"\\ud800"}'
    assert encoded({"text": "✓"}) == '{"text":"✓"}'.encode()
