"""Strict JSON: what Python's decoder lets through and a server must not.

Refused with 400: anything but UTF-8, a byte order mark, NaN, Infinity, numbers that overflow (1e999) or have more
than 64 digits, the same key twice in one object, half of a surrogate pair, nesting deeper than 32. The messages never
hold a part of the body. Knows nothing of what the JSON means.
"""

import json
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.errors import MalformedBodyError, UnsupportedMediaTypeError, quoted

MAX_DEPTH = 32
MAX_NUMBER_CHARACTERS = 64


def decode_json(body: bytes) -> object:
    """Parse one JSON value. Raises MalformedBodyError (400)."""
    if not body:
        raise MalformedBodyError("the body is empty", hint="send a JSON object")
    try:
        text = body.decode("utf-8")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"the body is not UTF-8: byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedBodyError(f"the body is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise _too_deep() from error
    # Brackets inside strings are counted too, so this only decides whether a closer look is needed.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    if "\\u" in text:
        _check_surrogates(value)
    return value


async def read_json(request: Request) -> object:
    """Read and parse a request's body; no content type counts as JSON.

    Raises UnsupportedMediaTypeError (415) for another content type or charset, MalformedBodyError (400).
    """
    check_json_content_type(request.headers.get("content-type"))
    return decode_json(await _read(request.receive))


async def _read(receive: Receive) -> bytes:
    """The whole body. Starlette's own way there takes a generator; most bodies come in one piece."""
    parts = []
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        is_more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_json_content_type(content_type: str | None) -> None:
    """Accept None, application/json, and application/json; charset=utf-8. Raises UnsupportedMediaTypeError (415)."""
    if content_type is None or content_type == "application/json":
        return
    media_type, _, parameters = content_type.lower().partition(";")
    charset = parameters.strip().removeprefix("charset=").strip('"')
    if media_type.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaTypeError(
            f"content type {quoted(content_type)} is not read here", hint="send application/json in UTF-8"
        )


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedBodyError("an object holds the same key twice", hint="which one should count cannot be known")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARACTERS:
        raise MalformedBodyError(f"a number has {len(digits)} characters; at most {MAX_NUMBER_CHARACTERS} are read")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_NUMBER_CHARACTERS:
        raise MalformedBodyError(f"a number has {len(digits)} characters; at most {MAX_NUMBER_CHARACTERS} are read")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedBodyError("a number is too large for a 64-bit float")
    return value


def _constant(name: str) -> NoReturn:
    raise MalformedBodyError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _depth(value: object) -> int:
    """Levels of nesting: 0 for a scalar, 1 for a flat list. Iterative, and gives up once past MAX_DEPTH."""
    depth = 0
    level = [value]
    while depth <= MAX_DEPTH:
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            break
        depth += 1
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _check_surrogates(value: object) -> None:
    # json.loads turns a lone "\ud800" into a str that nothing can encode again: it would fail much later, in a reply.
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedBodyError("a string holds half of a surrogate pair") from error


def _too_deep() -> MalformedBodyError:
    return MalformedBodyError(f"the body is nested deeper than {MAX_DEPTH} levels")
