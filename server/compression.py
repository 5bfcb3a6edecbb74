"""A compressed request body, unpacked within a bound. Knows bytes; nothing of what is in them."""

import zlib

from server.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError, quoted

# zlib's words for which header it shall look for.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def unpacked(body: bytes, content_encoding: str | None, max_bytes: int) -> bytes:
    """`body` as it was before it was compressed; itself where there is no encoding.

    Never holds more than `max_bytes` of it. Raises UnsupportedMediaTypeError (415) for an encoding other than gzip and
    deflate, MalformedBodyError (400) for what is none, BodyTooLargeError (413).
    """
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WINDOWS:
        raise UnsupportedMediaTypeError(
            f"content encoding {quoted(encoding)} is not read here", hint="gzip and deflate are"
        )
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBodyError(f"the body is not {encoding}") from error
    if len(data) > max_bytes:
        raise BodyTooLargeError(f"the body has more than {max_bytes} bytes unpacked, the most that is read here")
    if not inflater.eof or inflater.unused_data:
        raise MalformedBodyError(f"the body is not one whole {encoding} stream")
    return data
