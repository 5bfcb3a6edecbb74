"""The first thing a request meets: bounds on what is read of it, before anything is made of it.

    path and query over 4 KiB               414
    a control character in the path         400
    two Hosts, or one that is no host       400
    more than 64 header fields, or 16 KiB   431
    a Content-Encoding                      415   bodies are taken as they are: no decompression, no bombs, but
                                                  where a route unpacks one itself, within its cap
    a Content-Length that is no length      400   and one beside Transfer-Encoding, or another coding than chunked
    body over the cap, declared or chunked  413   declared: before a byte is read; chunked: at the byte too many
    a body that comes too slowly            408   no byte for 10 s; a part of it every 10 s is let go on for longer

A reply that begins before the body was read to its end waits for the rest of it if that is little and comes at once:
closing on a client that still sends may destroy the reply on its way. Otherwise it closes the connection, so that the
HTTP server does not go on to read a body nobody wants. Ray's multiplexing header is removed: a client must not steer
Ray's routing. Pure ASGI; knows nothing of routes.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_replies import error_reply
from server.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    MalformedBodyError,
    MalformedRequestError,
    RequestTimeoutError,
    ServerError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADER_FIELDS = 64
MAX_URI_BYTES = 4 * 1024
MAX_SILENCE_S = 10.0
# A body may take this long, and a second more for each so many bytes that came: a trickle ends, an upload does not.
MAX_BODY_S = 30.0
LEAST_BYTES_PER_S = 16 * 1024
# What is read past before a reply that did not wait for it.
SKIPPED_BYTES = 64 * 1024
SKIPPED_WITHIN_S = 1.0
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_HOST = re.compile(rb"([0-9A-Za-z._\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
# "serve_multiplexed_model_id" and its spelling with dashes: Ray Serve would split batches and route by it.
_DROPPED_HEADERS = frozenset({b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"})
_READ_HEADERS = frozenset({b"content-encoding", b"content-length", b"expect", b"host", b"transfer-encoding"})


class Bounds(NamedTuple):
    """What of a body is let through: so many bytes, and whether they may be compressed."""

    max_body_bytes: int
    may_be_compressed: bool = False


class Guard:
    """Outermost ASGI middleware. `max_body_bytes` caps the body of every route behind it, but for those `exceptions`
    that name a path and a cap of its own, and those paths that `bounds_of` has bounds for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        exceptions: Mapping[str, int] | None = None,
        bounds_of: Callable[[str], Bounds | None] = lambda _: None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._exceptions = dict(exceptions or {})
        self._bounds_of = bounds_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        bounds = self._bounds_of(path) or Bounds(self._exceptions.get(path, self._max_body_bytes))
        max_body_bytes = bounds.max_body_bytes
        head = _Head(scope)
        body = _Body(receive, send, max_body_bytes, may_skip=b"expect" not in head.fields)
        try:
            _check_head(scope, head)
            if not bounds.may_be_compressed:
                _check_not_compressed(head)
            declared_bytes = _declared_bytes(head)
            if declared_bytes == 0:
                body.is_read = True
            elif declared_bytes is not None and declared_bytes > max_body_bytes:
                body.may_skip &= declared_bytes <= SKIPPED_BYTES
                raise body.too_large()
        except ServerError as error:
            await error_reply(error, scope)(scope, receive, body.send)
            return
        if head.is_steering:
            scope["headers"] = [field for field in scope["headers"] if field[0].lower() not in _DROPPED_HEADERS]
        try:
            await self._app(scope, body.receive, body.send)
        except (BodyTooLargeError, RequestTimeoutError) as error:
            if body.is_answered:
                raise
            await error_reply(error, scope)(scope, receive, body.send)


class _Head:
    """The header fields in one pass: their bytes, the values of those that are read here, whether one is dropped."""

    __slots__ = ("fields", "is_steering", "size_bytes")

    def __init__(self, scope: Scope) -> None:
        self.fields: dict[bytes, list[bytes]] = {}
        self.is_steering = False
        self.size_bytes = 0
        for name, value in scope["headers"]:
            self.size_bytes += len(name) + len(value)
            lower = name.lower()
            if lower in _READ_HEADERS:
                self.fields.setdefault(lower, []).append(value)
            elif lower in _DROPPED_HEADERS:
                self.is_steering = True

    def all(self, name: bytes) -> list[bytes]:
        """The values of a field, in order."""
        return self.fields.get(name, [])


class _Body:
    """Counts what the application reads, and closes the connection after a reply that did not wait for the end."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, *, may_skip: bool) -> None:
        self.may_skip = may_skip  # a client that waits to be told to send should not be
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._read_bytes = 0
        self._began_s: float | None = None
        self.is_read = False
        self.is_answered = False

    async def receive(self) -> Message:
        message = await (self._receive() if self.is_read else self._in_time())
        if message["type"] == "http.request":
            self._read_bytes += len(message.get("body", b""))
            self.is_read = not message.get("more_body", False)
            if self._read_bytes > self._max_bytes:
                raise self.too_large()
        return message

    async def _in_time(self) -> Message:
        began_s = self._began_s = self._began_s or time.monotonic()
        left_s = began_s + MAX_BODY_S + self._read_bytes / LEAST_BYTES_PER_S - time.monotonic()
        try:
            async with asyncio.timeout(min(MAX_SILENCE_S, left_s)):
                return await self._receive()
        except TimeoutError as error:
            self.may_skip = False
            raise RequestTimeoutError(
                "the body came too slowly", hint="send it at once, or in smaller parts"
            ) from error

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_answered = True
            if self.may_skip and not self.is_read:
                await self._skip()
            if not self.is_read:
                MutableHeaders(scope=message)["connection"] = "close"
        await self._send(message)

    async def _skip(self) -> None:
        skipped_bytes = 0
        try:
            async with asyncio.timeout(SKIPPED_WITHIN_S):
                while not self.is_read and skipped_bytes < SKIPPED_BYTES:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    skipped_bytes += len(message.get("body", b""))
                    self.is_read = not message.get("more_body", False)
        except TimeoutError:
            pass

    def too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body has more than {self._max_bytes} bytes, the most that is read here")


def _check_head(scope: Scope, head: _Head) -> None:
    uri_bytes = len(scope.get("raw_path") or scope["path"].encode("utf-8", "replace")) + len(scope["query_string"])
    if uri_bytes > MAX_URI_BYTES:
        raise UriTooLongError(f"path and query have {uri_bytes} bytes; at most {MAX_URI_BYTES} are read")
    n_fields = len(scope["headers"])
    if n_fields > MAX_HEADER_FIELDS:
        raise HeadersTooLargeError(f"{n_fields} header fields; at most {MAX_HEADER_FIELDS} are read")
    if head.size_bytes > MAX_HEADER_BYTES:
        raise HeadersTooLargeError(f"{head.size_bytes} bytes of header fields; at most {MAX_HEADER_BYTES} are read")
    if _CONTROL.search(scope["path"]):
        raise MalformedRequestError("the path holds a control character")
    hosts = head.all(b"host")
    if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
        raise MalformedRequestError("Host is not the name of one host")


def _check_not_compressed(head: _Head) -> None:
    if (head.all(b"content-encoding") or [b"identity"])[0].lower() != b"identity":
        raise UnsupportedMediaTypeError("a Content-Encoding is not read here", hint="send the body uncompressed")


def _declared_bytes(head: _Head) -> int | None:
    """Bytes the body says it has: 0 where there is none, None where it comes in chunks of unknown sum."""
    lengths = set(head.all(b"content-length"))
    codings = head.all(b"transfer-encoding")
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise MalformedRequestError("the body is framed in another way than by one length or in chunks")
        return None
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not length.isdigit():
        raise MalformedBodyError("Content-Length is not one length")
    return int(length) if len(length) <= 18 else 10**18  # int() refuses thousands of digits
