"""The first thing a request meets: bounds on what is read of it, before anything is made of it.

    path and query over 4 KiB               414
    a control character in the path         400
    two Hosts, or one that is no host       400
    more than 64 header fields, or 16 KiB   431
    a Content-Encoding                      415   bodies are taken as they are: no decompression, no bombs
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
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
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


class Guard:
    """Outermost ASGI middleware. `max_body_bytes` caps the body of every route behind it, but for those `exceptions`
    that name a path and a cap of its own.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, exceptions: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._exceptions = dict(exceptions or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_body_bytes = self._exceptions.get(scope["path"], self._max_body_bytes)
        body = _Body(receive, send, max_body_bytes, may_skip=b"expect" not in {name for name, _ in scope["headers"]})
        try:
            _check_head(scope)
            declared_bytes = _declared_bytes(Headers(scope=scope))
            if declared_bytes == 0:
                body.is_read = True
            elif declared_bytes is not None and declared_bytes > max_body_bytes:
                body.may_skip &= declared_bytes <= SKIPPED_BYTES
                raise body.too_large()
        except ServerError as error:
            await error_reply(error, scope)(scope, receive, body.send)
            return
        scope["headers"] = [field for field in scope["headers"] if field[0].lower() not in _DROPPED_HEADERS]
        try:
            await self._app(scope, body.receive, body.send)
        except (BodyTooLargeError, RequestTimeoutError) as error:
            if body.is_answered:
                raise
            await error_reply(error, scope)(scope, receive, body.send)


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


def _check_head(scope: Scope) -> None:
    uri_bytes = len(scope.get("raw_path") or scope["path"].encode("utf-8", "replace")) + len(scope["query_string"])
    if uri_bytes > MAX_URI_BYTES:
        raise UriTooLongError(f"path and query have {uri_bytes} bytes; at most {MAX_URI_BYTES} are read")
    fields = scope["headers"]
    if len(fields) > MAX_HEADER_FIELDS:
        raise HeadersTooLargeError(f"{len(fields)} header fields; at most {MAX_HEADER_FIELDS} are read")
    header_bytes = sum(len(name) + len(value) for name, value in fields)
    if header_bytes > MAX_HEADER_BYTES:
        raise HeadersTooLargeError(f"{header_bytes} bytes of header fields; at most {MAX_HEADER_BYTES} are read")
    if _CONTROL.search(scope["path"]):
        raise MalformedRequestError("the path holds a control character")
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
        raise MalformedRequestError("Host is not the name of one host")


def _declared_bytes(headers: Headers) -> int | None:
    """Bytes the body says it has: 0 where there is none, None where it comes in chunks of unknown sum."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("a Content-Encoding is not read here", hint="send the body uncompressed")
    lengths = set(headers.getlist("content-length"))
    codings = headers.getlist("transfer-encoding")
    if codings:
        if lengths or [coding.lower() for coding in codings] != ["chunked"]:
            raise MalformedRequestError("the body is framed in another way than by one length or in chunks")
        return None
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdigit()):
        raise MalformedBodyError("Content-Length is not one length")
    return int(length) if len(length) <= 18 else 10**18  # int() refuses thousands of digits
