import gzip
import zlib

import pytest

from server.compression import unpacked
from server.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError

TEXT = b"free money " * 20


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(TEXT, None), (TEXT, "identity"), (gzip.compress(TEXT), "gzip"), (zlib.compress(TEXT), "Deflate")],
)
def test_a_body_is_unpacked(body: bytes, encoding: str | None) -> None:
    assert unpacked(body, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_another_encoding_is_415(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        unpacked(TEXT, encoding, 1000)


@pytest.mark.parametrize(
    "body",
    [TEXT, b"", gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"x", gzip.compress(TEXT) * 2, zlib.compress(TEXT)],
)
def test_what_is_not_one_whole_stream_is_400(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        unpacked(body, "gzip", 1000)


def test_a_bomb_is_413_before_it_is_unpacked() -> None:
    bomb = zlib.compress(b"\0" * 50_000_000)
    with pytest.raises(BodyTooLargeError):
        unpacked(bomb, "deflate", 1000)
