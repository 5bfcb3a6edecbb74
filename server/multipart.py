"""A multipart/form-data body as it arrives: parts by name, their bytes in pieces, nothing held back.

    Content-Disposition: form-data; name="acme/spam"      ->  PartBegan("acme/spam"), bytes, bytes, .., PartEnded()

Parsing is python-multipart's; the bounds on boundaries, headers and numbers of parts are kept here. Knows nothing of
what the parts are.
"""

from collections.abc import AsyncIterator
from typing import NamedTuple, TypeAlias

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidRequestError, MalformedBodyError, UnsupportedMediaTypeError

MAX_BOUNDARY_BYTES = 70  # RFC 2046


class PartBegan(NamedTuple):
    """The bytes that follow are of the part with this name."""

    name: str


class PartEnded(NamedTuple):
    """The last part that began is complete."""


PartEvent: TypeAlias = PartBegan | bytes | PartEnded


async def read_parts(
    content_type: str | None, chunks: AsyncIterator[bytes], *, max_parts: int
) -> AsyncIterator[PartEvent]:
    """The parts of a body in the order they arrive.

    Raises UnsupportedMediaTypeError (415) for another content type; MalformedBodyError (400) where the body is none
    or ends early; InvalidRequestError (422) for a part without a name, and for one too many.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise UnsupportedMediaTypeError(
            "expected multipart/form-data with a boundary",
            hint="for example curl -F acme/spam=@one.safetensors -F acme/ham=@two.safetensors",
        )
    collector = _Collector(boundary, max_parts)
    async for chunk in chunks:
        for event in collector.feed(chunk):
            yield event
    collector.finish()


class _Collector:
    """What the parser's callbacks said about one chunk, as a list."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self._max_parts = max_parts
        self._parts = 0
        self._is_complete = False
        self._field, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._events: list[PartEvent] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._events.append(bytes(data[start:end])),
                "on_part_end": lambda: self._events.append(PartEnded()),
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> list[PartEvent]:
        self._events = []
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise MalformedBodyError("the body is not multipart/form-data with the boundary it says") from error
        return self._events

    def finish(self) -> None:
        if not self._is_complete:
            raise MalformedBodyError("the body ended early: its last boundary is missing")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise InvalidRequestError(f"more than {self._max_parts} parts", hint="send the rest in another request")
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name")
        if name is None:
            raise InvalidRequestError(f"part {self._parts} has no name", hint="name each part as its adapter")
        self._events.append(PartBegan(name.decode("utf-8", "replace")))

    def _end(self) -> None:
        self._is_complete = True
