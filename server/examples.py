"""What the routes of the data plane take and answer, by example: the documentation beside the code in `server.app`.

Every status a route can answer is here, each error class with a message it really has.
"""

from typing import Any

from server import metrics
from server.answers import ItemsAnswer, ManyAdaptersAnswer, OneAdapterAnswer
from server.errors import (
    AdapterNotFoundError,
    BodyTooLargeError,
    DeadlineExceededError,
    EngineFailedError,
    HeadersTooLargeError,
    InputError,
    InvalidRequestError,
    MalformedBodyError,
    MalformedRequestError,
    NotReadyError,
    OverloadedError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    VersionNotFoundError,
)
from server.openapi import Responses, json_answer, json_body, native_errors, problem_errors
from server.schemas import MAX_BODY_BYTES, ItemsRequest, ManyAdaptersRequest, OneAdapterRequest

# Any route may answer these: they come from the guard around all of them.
GUARD_ERRORS = (
    RequestTimeoutError("the body came too slowly", hint="send it at once, or in smaller parts"),
    MalformedRequestError("Host is not the name of one host"),
    MalformedBodyError("Content-Length is not one length"),
    BodyTooLargeError(f"the body has more than {MAX_BODY_BYTES} bytes, the most that is read here"),
    UriTooLongError("path and query have 9000 bytes; at most 4096 are read"),
    UnsupportedMediaTypeError("a Content-Encoding is not read here", hint="send the body uncompressed"),
    HeadersTooLargeError("65 header fields; at most 64 are read"),
)
NOT_READY = NotReadyError("backbone or adapters do not answer", hint="ask again after the time in Retry-After")

_SHA256 = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_OTHER_SHA256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
_IDENTITY = {"adapter": "sst2", "version": 3, "sha256": _SHA256}
_POSITIVE = {
    "label": "positive",
    "score": 0.98,
    "scores": [{"label": "positive", "score": 0.98}],
    "n_tokens": 9,
    "truncated": False,
}
_UNSURE = {
    "label": None,
    "score": 0.54,
    "scores": [{"label": "positive", "score": 0.54}],
    "n_tokens": 7,
    "truncated": False,
    "abstained": True,
}
_TOPICS = {
    "label": "sport",
    "score": 0.91,
    "scores": [{"label": "sport", "score": 0.91}],
    "labels": ["sport", "health"],
    "n_tokens": 14,
    "truncated": False,
}
_SIMILAR = {
    "adapter": "stsb",
    "version": 1,
    "sha256": _OTHER_SHA256,
    "value": 4.2,
    "n_tokens": 13,
    "truncated": False,
}
_BLANK = InputError("the text is blank", code="BLANK_TEXT", param="inputs.1", hint="send at least one word")
_BLANK_ROW = {
    "error": {
        "message": _BLANK.message,
        "type": _BLANK.type,
        "code": _BLANK.code,
        "param": _BLANK.param,
        "hint": _BLANK.hint,
    }
}

CLASSIFY_REQUEST: dict[str, Any] = {
    **json_body(
        (OneAdapterRequest, ManyAdaptersRequest, ItemsRequest),
        {
            "one adapter": {"adapter": "sst2", "inputs": ["A warm, funny film.", {"text": "It drags."}]},
            "one text": {"adapter": "acme/spam@3", "inputs": "You have won!", "top_k": None},
            "a label only where it is sure": {"adapter": "sst2", "inputs": ["It has scenes."], "abstain_below": 0.8},
            "several adapters": {"adapters": ["sst2", "acme/topics"], "inputs": ["A warm, funny film."]},
            "an adapter per text": {
                "items": [
                    {"adapter": "sst2", "text": "A warm, funny film."},
                    {"adapter": "stsb", "text": "A cat sleeps.", "text_pair": "A cat is asleep."},
                ],
            },
        },
    ),
    "parameters": [
        {
            "name": "X-Timeout-S",
            "in": "header",
            "required": False,
            "description": "Seconds the client will wait; more than 20 count as 20.",
            "schema": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "default": "20"},
        }
    ],
}

CLASSIFY: Responses = {
    200: json_answer(
        "Every text has a result, or an error in its place.",
        {
            "one adapter": {**_IDENTITY, "results": [_POSITIVE]},
            "one text failed": {**_IDENTITY, "results": [_POSITIVE, _BLANK_ROW], "errors": 1},
            "no label is sure enough": {**_IDENTITY, "results": [_UNSURE]},
            "several adapters": {
                "results": [
                    {**_IDENTITY, "results": [_POSITIVE]},
                    {"adapter": "acme/topics", "version": 1, "sha256": _OTHER_SHA256, "results": [_TOPICS]},
                ]
            },
            "an adapter per text": {"results": [{**_IDENTITY, **_POSITIVE}, _SIMILAR]},
        },
        OneAdapterAnswer | ManyAdaptersAnswer | ItemsAnswer,
    ),
    **native_errors(
        *GUARD_ERRORS,
        MalformedBodyError("the body is not JSON: Expecting value at line 1, column 13"),
        AdapterNotFoundError("no adapter 'sst'", param="adapter", hint="did you mean sst2?"),
        VersionNotFoundError("adapter 'sst2' has no version 9", param="adapter", hint="it has 1, 2 and 3"),
        InvalidRequestError("top_k: input should be greater than or equal to 1", param="top_k"),
        _BLANK,
        InputError(
            "stsb is a regression: it gives a value, and has no score to abstain by",
            code="NOTHING_TO_ABSTAIN_FROM",
            param="abstain_below",
            hint="leave abstain_below out, or ask this adapter in a call of its own",
        ),
        OverloadedError("70000 tokens are waiting, and the server queues at most 65536"),
        NOT_READY,
        EngineFailedError("the engine failed on this adapter's rows"),
        DeadlineExceededError("not answered within 0.5 s"),
    ),
}

INFO: Responses = {
    200: json_answer(
        "Backbone, limits and replica.",
        {
            "info": {
                "replica": "3fk2a",
                "generation": 1031,
                "names": 1024,
                "engine": {
                    "backbone": "sentence-transformers/all-MiniLM-L6-v2",
                    "device": "cpu",
                    "dtype": "bfloat16",
                    "path": "packed",
                    "kernels": "native",
                    "batch_invariant": False,
                    "adapters": 1024,
                },
                "limits": {
                    "batch_budget_tokens": 2048,
                    "queue_limit_tokens": 65_536,
                    "queue_limit_rows": 4096,
                    "rows_per_minute": 6000,
                    "counted": "in memory, divided by 2 live replicas",
                },
                "access": "keys",
            }
        },
    ),
    **native_errors(*GUARD_ERRORS),
}

HEALTHZ: Responses = {
    200: json_answer("The process is alive.", {"alive": {"status": "ok"}}),
    **problem_errors("/healthz", *GUARD_ERRORS),
}

READYZ: Responses = {
    200: json_answer("Backbone and adapters answer.", {"ready": {"status": "ready"}}),
    **problem_errors("/readyz", *GUARD_ERRORS, NOT_READY),
}

METRICS: Responses = {
    200: {
        "description": "Prometheus text, with a label `replica` on every sample.",
        "content": {metrics.CONTENT_TYPE: {"example": 'adakron_rows_total{replica="3fk2a"} 1024.0\n'}},
    },
    **problem_errors("/metrics", *GUARD_ERRORS, NOT_READY),
}
