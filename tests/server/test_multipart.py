"""Multipart bodies: parts in order whatever the pieces they arrive in; a bound on everything a stranger can send."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequestError, MalformedBodyError, UnsupportedMediaTypeError
from server.multipart import PartBegan, PartEnded, read_parts

TYPE = "multipart/form-data; boundary=frontier"


def body_of(*parts: tuple[str, bytes]) -> bytes:
    body = b""
    for name, data in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="x"'
        body += b"--frontier\r\n" + disposition.encode() + b"\r\nContent-Type: x/y\r\n\r\n" + data + b"\r\n"
    return body + b"--frontier--\r\n"


async def read(
    body: bytes, *, size: int = 7, max_parts: int = 5, content_type: str | None = TYPE
) -> list[tuple[str, bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), size):
            yield body[begin : begin + size]

    parts: list[tuple[str, bytes]] = []
    is_open = False
    async for event in read_parts(content_type, chunks(), max_parts=max_parts):
        if isinstance(event, PartBegan):
            parts.append((event.name, b""))
            is_open = True
        elif isinstance(event, PartEnded):
            is_open = False
        else:
            assert is_open
            parts[-1] = (parts[-1][0], parts[-1][1] + event)
    assert not is_open
    return parts


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 200))
async def test_parts_are_what_was_sent_whatever_the_pieces(contents: list[bytes], size: int) -> None:
    sent = [(f"acme/n{n}", data) for n, data in enumerate(contents)]
    assert await read(body_of(*sent), size=size) == sent


async def test_bytes_that_look_like_a_boundary_are_data() -> None:
    sent = [("x", b"\r\n--frontie\r\n--front\r\n-"), ("y", b"--frontier--")]
    assert await read(body_of(*sent), size=3) == sent


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "multipart/mixed; boundary=x", "multipart/form-data", TYPE + "x" * 70, "a;b;c=;"],
)
async def test_other_content_type_is_refused(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        await read(body_of(), content_type=content_type)


@pytest.mark.parametrize("cut", [5, 40, 150])
async def test_body_that_ends_early_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedBodyError):
        await read(body_of(("x", b"y" * 100))[:-cut])


@pytest.mark.parametrize("body", [b"", b"{}", b"--other\r\n", b"\r\n\r\n", b"--frontier\r\nno header\r\n\r\n"])
async def test_body_of_another_form_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        await read(body)


async def test_part_too_many_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="more than 2 parts"):
        await read(body_of(("a", b""), ("b", b""), ("c", b"")), max_parts=2)


async def test_part_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="part 1 has no name"):
        await read(b"--frontier\r\nContent-Type: x/y\r\n\r\nz\r\n--frontier--\r\n")


async def test_endless_header_is_malformed() -> None:
    with pytest.raises(MalformedBodyError):
        await read(b"--frontier\r\nX: " + b"y" * 10_000, size=100)


async def test_many_headers_are_malformed() -> None:
    with pytest.raises(MalformedBodyError):
        await read(b"--frontier\r\n" + b"X: y\r\n" * 100)
