"""How an error looks on the wire: one table of statuses, one renderer, one envelope around every reply.

    /v1/**, /classify    {"error": {"message", "type", "code", "param", "hint", "request_id", ...details}}
    /v2/**               {"error": "message and hint", "error_type", "code", "request_id"}
    everything else      application/problem+json (RFC 9457), with message and hint as a top-level string `error` too

Clients of each prefix read no other form: some show nothing of it, some fail while they read it. Below /adapters the
`error_type` is one of TEI's words.

`install_error_handlers(app)` puts both on an application, for every path, known or not. A reply never holds a
client's input beyond 64 escaped characters, and never more than 4 KiB. What nobody foresaw becomes 500 INTERNAL
without a word of its text, which goes to the log.
"""

import json
import logging
import random
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

from adakron import errors as adakron_errors
from server.errors import MethodNotAllowedError, RouteNotFoundError, ServerError
from server.telemetry.notes import current_notes
from server.validation import invalid_request

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 4096
MAX_MESSAGE_CHARACTERS = 1000
MAX_DETAIL_CHARACTERS = 200
# Where even that is too much, every text is cut to this: four bytes a character still fit, repeated as a problem does.
MAX_SHORT_CHARACTERS = 120
MAX_HEADER_CHARACTERS = 300

# Errors of the runtime below us do not know HTTP. Those of our own tree carry their status themselves.
STATUS_OF: Mapping[type[adakron_errors.AdaKronError], int] = {
    adakron_errors.ConfigError: 422,
    adakron_errors.FormatError: 422,
    adakron_errors.HeaderError: 422,
    adakron_errors.MissingTensorError: 422,
    adakron_errors.UnexpectedTensorError: 422,
    adakron_errors.DtypeError: 422,
    adakron_errors.ShapeError: 422,
    adakron_errors.NonFiniteError: 422,
    adakron_errors.GoldenMismatchError: 422,
    adakron_errors.DataError: 422,
    adakron_errors.UnknownAdapterError: 404,
    adakron_errors.BaseMismatchError: 409,
    adakron_errors.BackboneError: 503,
    adakron_errors.BankFullError: 507,
}

_TEI_TYPES: Mapping[int, str] = {429: "Overloaded", 503: "Unhealthy"}

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=\-]{0,127}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def as_server_error(error: Exception) -> ServerError:
    """The error as one of our tree: itself, or with its status from STATUS_OF, or 500 INTERNAL without its text."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, adakron_errors.AdaKronError) and type(error) in STATUS_OF:
        return _from_adakron(error)
    if isinstance(error, HTTPException):
        return _from_framework(error)
    if isinstance(error, RequestValidationError):
        # The first part of a location is where FastAPI looked: "query", "path", "header".
        return invalid_request([{**problem, "loc": problem["loc"][1:]} for problem in error.errors()])
    return ServerError("the server failed on this request", hint="report it with the request id")


class ErrorObject(TypedDict):
    """The essence of an error, the same in every rendering and in a row's place."""

    message: str
    type: str
    code: str
    param: str | None
    hint: str | None


def error_object(error: ServerError) -> ErrorObject:
    """The error as clients see it: every text one line, and bounded."""
    return {
        "message": _line(error.message, MAX_MESSAGE_CHARACTERS),
        "type": error.type,
        "code": error.code,
        "param": None if error.param is None else _line(error.param, MAX_DETAIL_CHARACTERS),
        "hint": None if error.hint is None else _line(error.hint, MAX_MESSAGE_CHARACTERS // 2),
    }


def error_reply(error: Exception, scope: Scope) -> Response:
    """The complete reply for an error on the request in `scope`; logs what is a bug of ours."""
    known = as_server_error(error)
    request_id = request_id_of(scope)
    notes = current_notes()
    if notes is not None:
        notes.error = known.code
    if known.status == 500:
        logger.error("request %s failed", request_id, exc_info=error)
    headers = {
        "x-request-id": request_id,
        "x-error-message": _line(f"{known.code}: {known.message}", MAX_HEADER_CHARACTERS)
        .encode("ascii", "backslashreplace")
        .decode(),
    }
    if known.status in (429, 503):
        # Spread out, so that clients turned away together do not come back together.
        headers["retry-after"] = str(known.retry_after_s or random.randint(1, 3))
    if known.status == 401:
        headers["www-authenticate"] = 'Bearer realm="adakron"'
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        headers["allow"] = error.headers["Allow"]
    path = scope["path"]
    if path.startswith("/v1/") or path in ("/v1", "/classify"):
        return Response(_native_body(known, request_id), known.status, headers, "application/json")
    if path.startswith("/v2/") or path == "/v2":
        return Response(_v2_body(known, request_id), known.status, headers, "application/json")
    return Response(_problem_body(known, request_id, path), known.status, headers, "application/problem+json")


def request_id_of(scope: Scope) -> str:
    """The id of this request: the client's x-request-id or x-amzn-trace-id if short and plain, else a new one."""
    state: dict[str, object] = scope.setdefault("state", {})
    known = state.get("request_id")
    if isinstance(known, str):
        return known
    headers = Headers(scope=scope)
    offered = headers.get("x-request-id") or headers.get("x-amzn-trace-id") or ""
    request_id = offered if _CLIENT_REQUEST_ID.fullmatch(offered) else secrets.token_hex(16)
    state["request_id"] = request_id
    return request_id


def reply_headers(scope: Scope) -> dict[str, str]:
    """Header fields that any reply to this request will have, an error too: put some in."""
    state: dict[str, dict[str, str]] = scope.setdefault("state", {})
    return state.setdefault("reply_headers", {})


def install_error_handlers(app: FastAPI) -> None:
    """Render every error of `app` as above, for all paths, and give every reply X-Request-Id and Server-Timing."""

    async def handle(request: Request, error: Exception) -> Response:
        return error_reply(error, request.scope)

    for kind in (ServerError, adakron_errors.AdaKronError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
    app.add_middleware(Envelope)


class Envelope:
    """ASGI middleware around the application: request id, Server-Timing, and the last catch of any exception."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        is_answering = False
        more_headers = reply_headers(scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal is_answering
            if message["type"] == "http.response.start":
                is_answering = True
                more = {"x-request-id": request_id_of(scope), **more_headers}
                encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
                replaced = {name for name, _ in encoded}
                total = f"total;dur={(time.perf_counter() - started_s) * 1000:.1f}"
                message["headers"] = [
                    *(field for field in message.get("headers", ()) if field[0] not in replaced),
                    *encoded,
                    (b"server-timing", total.encode("latin-1")),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            # Nobody is left to answer. What goes out all the same is for the counters.
            if not is_answering:
                await send_with_headers({"type": "http.response.start", "status": 499, "headers": []})
                await send_with_headers({"type": "http.response.body", "body": b""})
        except Exception as error:
            if is_answering:  # too late for a reply of our own: the server closes the connection
                raise
            await error_reply(error, scope)(scope, receive, send_with_headers)


def _from_adakron(error: adakron_errors.AdaKronError) -> ServerError:
    facts = {name: getattr(error, name, None) for name in ("tensor", "expected", "found")}
    param = error.key if isinstance(error, adakron_errors.ConfigError) else None
    details = {name: value for name, value in facts.items() if value is not None}
    known = ServerError(str(error), param=param, hint=error.hint, details=details)
    known.status = STATUS_OF[type(error)]
    known.code = error.code
    return known


def _from_framework(error: HTTPException) -> ServerError:
    if error.status_code == 404:
        return RouteNotFoundError("no such route", hint="GET /openapi.json lists the routes, /docs explains them")
    if error.status_code == 405:
        return MethodNotAllowedError("this route does not take this method", hint="see the Allow header")
    status = HTTPStatus(error.status_code)
    known = ServerError(status.phrase)  # never error.detail, which may quote the request
    known.status = status.value
    known.code = status.name
    return known


def _native_body(error: ServerError, request_id: str) -> bytes:
    essence: dict[str, object] = {**error_object(error), "request_id": request_id}
    return _bounded(
        {"error": {**_cut(error.details, MAX_DETAIL_CHARACTERS), **essence}},
        {"error": _cut(essence, MAX_SHORT_CHARACTERS)},
    )


def _v2_body(error: ServerError, request_id: str) -> bytes:
    essence: dict[str, object] = dict(error_object(error))

    def body(members: Mapping[str, object]) -> dict[str, object]:
        return {
            "error": _with_hint(members),
            "error_type": error.type,
            "code": error.code,
            "request_id": request_id,
        }

    return _bounded(body(essence), body(_cut(essence, MAX_SHORT_CHARACTERS)))


def tei_type(status: int) -> str:
    """The word of Text Embeddings Inference for an error of this status."""
    return _TEI_TYPES.get(status, "Validation" if status < 500 else "Backend")


def _with_hint(members: Mapping[str, object]) -> object:
    return f"{members['message']} Hint: {members['hint']}" if members["hint"] else members["message"]


def _problem_body(error: ServerError, request_id: str, path: str) -> bytes:
    essence: dict[str, object] = {**error_object(error), "request_id": request_id}

    def problem(members: Mapping[str, object]) -> dict[str, object]:
        return {
            "type": f"urn:adakron:error:{error.code.lower().replace('_', '-')}",
            "title": HTTPStatus(error.status).phrase,
            "status": error.status,
            "detail": members["message"],
            "instance": quote(path.encode("utf-8", "replace"))[:64],
            "code": error.code,
            "param": members["param"],
            "hint": members["hint"],
            "error": _with_hint(members),
            "error_type": tei_type(error.status) if path.startswith("/adapters/") else error.type,
            "request_id": request_id,
        }

    full = {**_cut(error.details, MAX_DETAIL_CHARACTERS), **problem(essence)}
    return _bounded(full, problem(_cut(essence, MAX_SHORT_CHARACTERS)))


def _cut(members: Mapping[str, object], max_characters: int) -> dict[str, object]:
    return {name: _line(value, max_characters) if isinstance(value, str) else value for name, value in members.items()}


def _bounded(full: Mapping[str, object], short: Mapping[str, object]) -> bytes:
    body = _encoded(full)
    return body if len(body) <= MAX_REPLY_BYTES else _encoded(short)


def _encoded(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _line(text: str, max_characters: int) -> str:
    """One line without control characters or lone surrogates, cut to `max_characters`."""
    clean = _CONTROL_CHARACTERS.sub(" ", text[: max_characters + 1])
    return clean if len(clean) <= max_characters else f"{clean[: max_characters - 3]}..."
