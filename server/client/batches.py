"""Texts of any number cut into requests of the size that a server takes.

A text is a string, a pair of strings, or an `Item` that names its own adapter. Knows the server's limits; nothing of
HTTP or of answers.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# The server's own, as `server.schemas` has them, which is not imported: it would bring pydantic along.
MAX_ROWS = 128
MAX_BODY_BYTES = 2**20
# For what stands around the texts in a body: keys, options, and an adapter's name.
ENVELOPE_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Item:
    """A text, or a pair of them, for an adapter of its own; without one, for the adapter of the call."""

    text: str
    text_pair: str | None = None
    adapter: str | None = None


Text: TypeAlias = str | tuple[str, str] | Item


def as_item(text: Text) -> Item:
    """Any of the three as an Item."""
    if isinstance(text, Item):
        return text
    return Item(text) if isinstance(text, str) else Item(*text)


def cut(texts: Iterable[Text], adapter: str | None) -> Iterator[list[Item]]:
    """Lists of items that fit in one request each, in order, read as they are asked for.

    A text that is too long for any request has one of its own, for the server to refuse. Raises TypeError for one text.
    """
    if isinstance(texts, str | Item):
        raise TypeError("expected several texts, got one: put it in a list, or call classify")
    batch: list[Item] = []
    size_bytes = ENVELOPE_BYTES
    for item in map(as_item, texts):
        row_bytes = len(encoded(row_of(item, item.adapter or adapter))) + 1
        if batch and (len(batch) == MAX_ROWS or size_bytes + row_bytes > MAX_BODY_BYTES):
            yield batch
            batch, size_bytes = [], ENVELOPE_BYTES
        batch.append(item)
        size_bytes += row_bytes
    if batch:
        yield batch


def body_of(items: Sequence[Item], adapter: str | None) -> dict[str, Any]:
    """The form of POST /v1/classify for these: `inputs` where all are for the call's adapter, else `items`.

    Raises ValueError for an item without any adapter.
    """
    if adapter is not None and all(item.adapter is None for item in items):
        return {"adapter": adapter, "inputs": inputs_of(items)}
    named = [item.adapter or adapter for item in items]
    if None in named:
        raise ValueError("a text names no adapter, and neither does the call")
    return {"items": [row_of(item, name) for item, name in zip(items, named, strict=True)]}


def inputs_of(items: Sequence[Item]) -> list[Any]:
    """`inputs`: strings, and objects for pairs."""
    return [item.text if item.text_pair is None else row_of(item, None) for item in items]


def row_of(item: Item, adapter: str | None) -> dict[str, str]:
    """An item as JSON."""
    row = {} if adapter is None else {"adapter": adapter}
    row["text"] = item.text
    return row if item.text_pair is None else row | {"text_pair": item.text_pair}


def encoded(value: object) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, is escaped for the server to refuse."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
