"""What the routes below /v2 take and answer, by example: every status of every route."""

from typing import Any

from adakron.errors import BaseMismatchError, ShapeError
from server.dialects.examples import CALL_ERRORS, UNKNOWN_ERRORS
from server.error_replies import as_server_error
from server.errors import (
    AdapterNotFoundError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    OverloadedError,
    ServerError,
    StorageFullError,
)
from server.examples import GUARD_ERRORS, NOT_READY
from server.openapi import Responses, json_answer, v2_errors

_SHA256 = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_BINARY = {"type": "string", "format": "binary"}
_INPUT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["free money", "see you at nine"]}
_SCORES = {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 0.9, 0.75, 0.25]}
_LABEL = {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["spam", "ham"]}
_CLASSES = {"name": "scores", "datatype": "BYTES", "shape": [2, 1], "data": ["0.900000:1:spam", "0.750000:0:ham"]}
_NAMED = {"model_name": "acme--spam", "model_version": "3"}
_NO_TIME = {"count": 0, "ns": 0}
_STATISTICS = {
    "model_stats": [
        {
            "name": "acme--spam",
            "version": "3",
            "last_inference": 1_795_600_000_000,
            "inference_count": 1024,
            "execution_count": 96,
            "inference_stats": {
                "success": {"count": 512, "ns": 11_000_000_000},
                "fail": {"count": 1, "ns": 0},
                "queue": {"count": 512, "ns": 3_000_000_000},
                "compute_input": {"count": 512, "ns": 1_000_000_000},
                "compute_infer": {"count": 512, "ns": 7_000_000_000},
                "compute_output": {"count": 512, "ns": 0},
                "cache_hit": _NO_TIME,
                "cache_miss": _NO_TIME,
            },
            "batch_stats": [],
        }
    ]
}
_TENSORS = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ],
}
_LOADED = {"name": "acme--spam", "version": "3", "state": "READY", "sha256": _SHA256}
_CHANGE_ERRORS: tuple[ServerError, ...] = (
    *GUARD_ERRORS,
    MalformedBodyError("the body is not JSON: Expecting value at line 1, column 13"),
    AdapterNotFoundError("no adapter 'acme/span'", param="name", hint="GET /v1/adapters lists the names"),
    InvalidRequestError("not an adapter name: 'Acme'", param="model"),
    OverloadedError("too many changes of adapters are under way"),
    NotReadyError("the admin application does not answer; whether it did is not known"),
    StorageFullError("the disk of the adapter store is full", hint="delete versions or free space"),
)


def _body(title: str, named: dict[str, object], *, is_required: bool, is_binary: bool = False) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in named.items()}
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{title}"}, "examples": examples}
    }
    if is_binary:
        content["application/octet-stream"] = {"schema": _BINARY}
    return {"requestBody": {"required": is_required, "content": content}}


LIVE: Responses = {
    200: json_answer("The process is alive.", {"alive": {"live": True, "ready": True}}),
    **v2_errors(*GUARD_ERRORS),
}
READY: Responses = {
    200: json_answer("Backbone and adapters answer.", {"ready": {"live": True, "ready": True}}),
    **v2_errors(*GUARD_ERRORS, NOT_READY),
}
SERVER: Responses = {
    200: json_answer(
        "The server.",
        {
            "server": {
                "name": "adakron",
                "version": "0.1.0",
                "extensions": ["binary_tensor_data", "classification", "model_repository", "statistics"],
            }
        },
    ),
    **v2_errors(*GUARD_ERRORS),
}
MODELS: Responses = {
    200: json_answer("Names.", {"models": {"models": ["acme--spam", "sst2"]}}),
    **v2_errors(*GUARD_ERRORS),
}
MODEL: Responses = {
    200: json_answer(
        "The model.", {"model": {"name": "acme--spam", "versions": ["1", "3"], "platform": "adakron", **_TENSORS}}
    ),
    **v2_errors(*GUARD_ERRORS, *UNKNOWN_ERRORS),
}
MODEL_READY: Responses = {
    200: json_answer("It can.", {"ready": {"name": "acme--spam", "ready": True}}),
    **v2_errors(*GUARD_ERRORS, *UNKNOWN_ERRORS),
}
CONFIG: Responses = {
    200: json_answer(
        "The configuration.",
        {
            "config": {
                "name": "acme--spam",
                "platform": "adakron",
                "backend": "adakron",
                "version_policy": {"specific": {"versions": [3]}},
                "max_batch_size": 128,
                "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}],
                "output": [
                    {"name": "scores", "data_type": "TYPE_FP32", "dims": [2]},
                    {"name": "label", "data_type": "TYPE_STRING", "dims": [1]},
                ],
            }
        },
    ),
    **v2_errors(*GUARD_ERRORS, *UNKNOWN_ERRORS),
}
INFER_BODY: dict[str, Any] = {
    **_body(
        "InferRequest",
        {
            "texts": {"inputs": [_INPUT]},
            "best label alone": {
                "id": "r1",
                "inputs": [_INPUT],
                "outputs": [{"name": "scores", "parameters": {"classification": 1}}],
            },
            "pairs": {"inputs": [{**_INPUT, "shape": [1, 2]}], "parameters": {"function_to_apply": "none"}},
        },
        is_required=True,
        is_binary=True,
    ),
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "description": "Bytes of the body that are JSON, where tensors follow it; 0: the whole body is one text.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
        }
    ],
}
_INFERRED = json_answer(
    "Scores and labels.",
    {
        "all outputs": {**_NAMED, "outputs": [_SCORES, _LABEL]},
        "classification": {**_NAMED, "id": "r1", "outputs": [_CLASSES]},
    },
)
_INFERRED["content"]["application/octet-stream"] = {
    "schema": _BINARY,
    "example": "JSON of Inference-Header-Content-Length bytes, then the tensors",
}
INFER: Responses = {200: _INFERRED, **v2_errors(*CALL_ERRORS)}
STATISTICS: Responses = {
    200: json_answer("One entry a kept version.", {"statistics": _STATISTICS}),
    **v2_errors(*GUARD_ERRORS, *UNKNOWN_ERRORS),
}
ALL_STATISTICS: Responses = {
    200: json_answer("One entry a version that was called.", {"statistics": _STATISTICS}),
    **v2_errors(*GUARD_ERRORS),
}
INDEX_BODY = _body("IndexRequest", {"all": {}, "those that answer": {"ready": True}}, is_required=False)
INDEX: Responses = {
    200: json_answer(
        "What is registered.",
        {
            "index": [
                {"name": "acme--spam", "version": "3", "state": "READY", "reason": ""},
                {
                    "name": "acme--staged",
                    "version": "1",
                    "state": "UNAVAILABLE",
                    "reason": "no version is active; this one answers where it is named",
                },
            ]
        },
    ),
    **v2_errors(
        *GUARD_ERRORS,
        MalformedBodyError("the body is not JSON: Expecting value at line 1, column 13"),
        InvalidRequestError("ready: input should be a valid boolean", param="ready"),
    ),
}
LOAD_BODY = _body(
    "LoadRequest",
    {
        "what answered last": {},
        "a version": {"parameters": {"config": '{"version_policy": {"specific": {"versions": [2]}}}'}},
        "a file": {"parameters": {"config": "{}", "file:1/adapter_model.safetensors": "mAAAAAAAAAB7..."}},
    },
    is_required=False,
)
LOAD: Responses = {
    200: json_answer("It answers.", {"loaded": _LOADED}),
    **v2_errors(
        *_CHANGE_ERRORS,
        as_server_error(BaseMismatchError("made for bert-base-uncased; this engine runs all-MiniLM-L6-v2")),
        as_server_error(ShapeError("head.weight: expected shape [2, 384]; found [3, 384]")),
    ),
}
UNLOAD_BODY = _body("UnloadRequest", {"unload": {"parameters": {"unload_dependents": False}}}, is_required=False)
UNLOAD: Responses = {
    200: json_answer("It answers no more.", {"unloaded": {**_LOADED, "state": "UNAVAILABLE"}}),
    **v2_errors(*_CHANGE_ERRORS),
}
