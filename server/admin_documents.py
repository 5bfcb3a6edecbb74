"""What /openapi.json says of the admin routes' answers: an example of every success and of every error.

Data only; `server.admin` attaches it to the routes.
"""

from typing import Any

from adakron.errors import BankFullError, BaseMismatchError, ShapeError
from server.error_replies import as_server_error, error_object
from server.errors import (
    AdapterNotFoundError,
    BodyTooLargeError,
    ConflictError,
    HeadersTooLargeError,
    InvalidRequestError,
    MalformedBodyError,
    MalformedRequestError,
    NotReadyError,
    PreconditionFailedError,
    RequestTimeoutError,
    ServerError,
    StorageFullError,
    StorageUnavailableError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    VersionNotFoundError,
)
from server.openapi import EXAMPLE_REQUEST_ID, Responses, json_answer, native_errors

_SHA256 = "9f2c51cf6c3b6a1f5b8e2d4a7c9e0f13a5b7c9d1e3f5a7b9c1d3e5f7a9b1c3d5"
_ACTIVATED = {"name": "acme/spam", "version": 2, "sha256": _SHA256, "active": True, "generation": 17, "lagging": []}
_REGISTERED = {**_ACTIVATED, "no_effect": False}
_DELETED = {
    "name": "acme/spam",
    "versions": [1, 2],
    "freed_bytes": {"device": 2_412_300, "host": 0, "disk": 2_412_300, "remote": 0},
    "generation": 18,
    "lagging": [],
}
_SUMMARY = {
    "name": "acme/spam",
    "version": 2,
    "sha256": _SHA256,
    "size_bytes": 1_206_150,
    "versions": [1, 2],
    "generation": 17,
    "problem_type": "single_label_classification",
    "takes_pair": False,
    "num_labels": 2,
    "labels": ["ham", "spam"],
    "resident": ["3fk2a", "9xq0c"],
    "tier": "device",
    "requests": 4711,
    "last_used_at": "2026-11-23T16:02:11+00:00",
    "split": {"weights": {"1": 90, "2": 10}, "shadow": 3},
}
_VERSION = {
    "version": 2,
    "sha256": _SHA256,
    "size_bytes": 1_206_150,
    "created_at": "2026-11-23T15:54:09+00:00",
    "active": True,
    "no_effect": False,
    "resident": ["3fk2a", "9xq0c"],
}
_EVENT = {
    "at": "2026-11-23T15:54:09+00:00",
    "generation": 17,
    "action": "register",
    "version": 2,
    "sha256": _SHA256,
    "active_version": 2,
    "key_id": None,
    "source": "127.0.0.1",
    "request_id": EXAMPLE_REQUEST_ID,
}
_ADAPTER = {
    **_SUMMARY,
    "versions": [_VERSION],
    "shadow_rows": {"same": 990, "different": 10, "failed": 0, "dropped": 0},
    "config": {"bottleneck": 48, "factor": 4, "order": "a2_a1"},
    "history": [_EVENT],
}

_EDGE: tuple[ServerError, ...] = (
    RequestTimeoutError("the body came too slowly", hint="send it at once, or in smaller parts"),
    MalformedRequestError("Host is not the name of one host"),
    BodyTooLargeError("the body has more than 67108864 bytes, the most that is read here"),
    UriTooLongError("path and query have 5000 bytes; at most 4096 are read"),
    UnsupportedMediaTypeError("a Content-Encoding is not read here", hint="send the body uncompressed"),
    HeadersTooLargeError("65 header fields; at most 64 are read"),
    MalformedBodyError("Content-Length is not one length"),
    InvalidRequestError("not an adapter name: 'Acme'", param="name"),
    StorageUnavailableError("the catalogue cannot be used: database is locked"),
)
_WRITE: tuple[ServerError, ...] = (
    *_EDGE,
    PreconditionFailedError('If-Match does not hold for acme/spam: its ETag is "17"', hint="read the adapter again"),
    StorageFullError("the disk of the adapter store is full", hint="delete versions or free space"),
)
_UNKNOWN = AdapterNotFoundError("no adapter 'acme/span'", param="name", hint="GET /v1/adapters lists the names")
_UNKNOWN_VERSION = VersionNotFoundError("adapter 'acme/spam' has no version 9", param="version")
_BINARY = {"type": "string", "format": "binary"}
_LAGGING = "Done; the replicas named are not there yet, and will be by themselves."

LIST: Responses = {
    200: json_answer("A page.", {"page": {"adapters": [_SUMMARY], "next": "acme/spam"}}),
    **native_errors(*_EDGE),
}
GET: Responses = {200: json_answer("The adapter.", {"adapter": _ADAPTER}), **native_errors(*_EDGE, _UNKNOWN)}
_STATS: dict[str, Any] = {
    "name": "acme/spam",
    "active": 2,
    "replicas": 2,
    "versions": [
        {
            "version": 2,
            "sha256": _SHA256,
            "active": True,
            "since": "2026-11-23T15:54:09+00:00",
            "requests": {"good": 990, "failed": 10},
            "rows": {"good": 3960, "failed": 12},
            "latency_seconds": {"mean": 0.011, "p50": 0.009, "p95": 0.024, "p99": 0.041},
            "labels": [
                {"label": "ham", "rows": 2376, "share": 0.6, "reference": 0.8},
                {"label": "spam", "rows": 1584, "share": 0.4, "reference": 0.2},
            ],
            "withheld": 0,
            "drift": {"psi": 0.196166, "jensen_shannon": 0.186686},
            "drift_reason": None,
        }
    ],
}
_TOO_FEW: dict[str, Any] = {
    **_STATS["versions"][0],
    "rows": {"good": 10, "failed": 0},
    "labels": [
        {"label": "ham", "rows": 6, "share": 0.6, "reference": 0.8},
        {"label": "spam", "rows": 4, "share": 0.4, "reference": 0.2},
    ],
    "drift": None,
    "drift_reason": "10 rows so far; below 100, chance alone may look like drift",
}
STATS: Responses = {
    200: json_answer(
        "What each version served.",
        {"drifted": _STATS, "too few rows": {**_STATS, "versions": [_TOO_FEW]}},
    ),
    **native_errors(*_EDGE, _UNKNOWN),
}
PUT: Responses = {
    200: json_answer("These bytes were a version already.", {"same": _REGISTERED}),
    201: json_answer("A new version.", {"new": _REGISTERED}),
    202: json_answer(_LAGGING, {"lagging": {**_REGISTERED, "lagging": ["9xq0c"]}}),
    **native_errors(
        *_WRITE,
        as_server_error(BaseMismatchError("made for bert-base-uncased; this engine runs all-MiniLM-L6-v2")),
        as_server_error(ShapeError("head.weight: expected shape [2, 384]; found [3, 384]", tensor="head.weight")),
        as_server_error(BankFullError("no memory left for another adapter")),
        NotReadyError("no replica tried the adapter in time; nothing was registered", retry_after_s=5),
    ),
}
DELETE: Responses = {
    200: json_answer("Gone, with the bytes that freed.", {"deleted": _DELETED}),
    202: json_answer(_LAGGING, {"lagging": {**_DELETED, "lagging": ["9xq0c"]}}),
    **native_errors(
        *_WRITE, _UNKNOWN, _UNKNOWN_VERSION, ConflictError("version 2 of acme/spam is the active one", param="version")
    ),
}
ACTIVATE: Responses = {
    200: json_answer("Active.", {"activated": _ACTIVATED}),
    202: json_answer(_LAGGING, {"lagging": {**_ACTIVATED, "lagging": ["9xq0c"]}}),
    **native_errors(
        *_WRITE,
        _UNKNOWN,
        _UNKNOWN_VERSION,
        ConflictError("this Idempotency-Key came with another request before", param="Idempotency-Key"),
    ),
}
_SPLIT: dict[str, Any] = {
    "name": "acme/spam",
    "weights": {"1": 90, "2": 10},
    "shadow": 3,
    "generation": 18,
    "lagging": [],
}
_ITEM = {"name": "acme/spam", "status": 201, "version": 1, "sha256": _SHA256, "active": True, "generation": 18}
_REFUSED = {
    "name": "acme/ham",
    "status": 422,
    "error": {
        "tensor": "head.weight",
        "expected": "[2, 384]",
        "found": "[3, 384]",
        **error_object(as_server_error(ShapeError("head.weight: expected shape [2, 384]; found [3, 384]"))),
    },
}
_BULK: dict[str, Any] = {
    "results": [{**_ITEM, "no_effect": False}, _REFUSED],
    "registered": 1,
    "failed": 1,
    "lagging": [],
}
BULK: Responses = {
    200: json_answer("Each is registered, or refused in its place.", {"some": _BULK}),
    202: json_answer(_LAGGING, {"lagging": {**_BULK, "lagging": ["9xq0c"]}}),
    **native_errors(*_EDGE),
}
BULK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"type": "object", "additionalProperties": _BINARY}}},
    }
}
SPLIT: Responses = {
    200: json_answer("Calls are shared out so.", {"split": _SPLIT}),
    202: json_answer(_LAGGING, {"lagging": {**_SPLIT, "lagging": ["9xq0c"]}}),
    **native_errors(*_WRITE, _UNKNOWN, _UNKNOWN_VERSION, ConflictError("no version of acme/spam is active")),
}
FETCH: Responses = {
    200: {"description": "The file.", "content": {"application/octet-stream": {"schema": _BINARY}}},
    **native_errors(*_EDGE, _UNKNOWN, _UNKNOWN_VERSION),
}
FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": _BINARY}},
    }
}
