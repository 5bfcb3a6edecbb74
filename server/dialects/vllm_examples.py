"""What the routes in vLLM's and OpenAI's shape take and answer, by example; and POST /v1/classify, which has two."""

from copy import deepcopy
from typing import Any

from server import examples
from server.dialects.examples import CALL_ERRORS, UNKNOWN_ERRORS
from server.errors import (
    AdapterNotFoundError,
    AlreadyLoadedError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    OverloadedError,
    ServerError,
    StorageFullError,
)
from server.examples import GUARD_ERRORS
from server.openapi import Responses, json_answer, native_errors

_REQUEST: dict[str, object] = {"model": "acme/spam", "input": ["free money", "see you at nine"]}
_REPLY: dict[str, object] = {
    "id": "classify-6e0a4a3b5c7d4b1e9f2a8c0d1e3f5a7b",
    "object": "list",
    "created": 1_795_600_000,
    "model": "acme/spam",
    "data": [
        {"index": 0, "label": "spam", "probs": [0.1, 0.9], "num_classes": 2},
        {"index": 1, "label": "ham", "probs": [0.75, 0.25], "num_classes": 2},
    ],
    "usage": {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0, "prompt_tokens_details": None},
}
_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
_BASE = {
    "id": _BACKBONE,
    "object": "model",
    "created": 0,
    "owned_by": "adakron",
    "root": _BACKBONE,
    "parent": None,
    "max_model_len": 512,
}
_CARD = {
    "id": "acme/spam",
    "object": "model",
    "created": 1_795_600_000,
    "owned_by": "adakron",
    "root": "acme/spam@3",
    "parent": _BACKBONE,
}
_CHANGE_ERRORS: tuple[ServerError, ...] = (
    *GUARD_ERRORS,
    MalformedBodyError("the body is not JSON: Expecting value at line 1, column 13"),
    AdapterNotFoundError("no adapter 'acme/span'", param="name", hint="GET /v1/adapters lists the names"),
    InvalidRequestError(
        "lora_path: '/adapters/spam' is not a version of 'acme/spam'; no path is read here", param="lora_path"
    ),
    OverloadedError("too many changes of adapters are under way"),
    NotReadyError("the admin application does not answer; whether it did is not known"),
    StorageFullError("the disk of the adapter store is full", hint="delete versions or free space"),
)


def _body(title: str, named: dict[str, object]) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{title}"}}
    values = {"examples": {name: {"value": value} for name, value in named.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": {**content, **values}}}}


def _said(text: str) -> dict[str, Any]:
    return {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}, "example": text}}}


def _shared() -> tuple[dict[str, Any], Responses]:
    """The native route with one form more."""
    body, responses = deepcopy(examples.CLASSIFY_REQUEST), deepcopy(examples.CLASSIFY)
    content = body["requestBody"]["content"]["application/json"]
    content["schema"]["anyOf"].append({"$ref": "#/components/schemas/VllmClassifyRequest"})
    content["examples"]["as vLLM"] = {"value": _REQUEST}
    responses[200]["content"]["application/json"]["examples"]["as vLLM"] = {"value": _REPLY}
    return body, responses


SHARED_CLASSIFY_BODY, SHARED_CLASSIFY = _shared()
CLASSIFY_BODY = _body(
    "VllmClassifyRequest",
    {"texts": _REQUEST, "one text, cut, as logits": {**_REQUEST, "input": "x", "truncate_prompt_tokens": -1}},
)
CLASSIFY: Responses = {
    200: json_answer("One entry a text; probs in the order of the labels.", {"texts": _REPLY}),
    **native_errors(*CALL_ERRORS),
}
MODELS: Responses = {
    200: json_answer("Cards.", {"models": {"object": "list", "data": [_BASE, _CARD], "has_more": False}}),
    **native_errors(*GUARD_ERRORS, InvalidRequestError("limit: input should be greater than or equal to 1")),
}
MODEL: Responses = {
    200: json_answer("A card.", {"adapter": {**_CARD, "max_model_len": 128}, "backbone": _BASE}),
    **native_errors(*GUARD_ERRORS, *UNKNOWN_ERRORS),
}
LOAD_BODY = _body(
    "VllmLoadRequest",
    {
        "what answered last": {"lora_name": "acme/spam"},
        "a version": {"lora_name": "acme/spam", "lora_path": "acme/spam@2", "load_inplace": True},
    },
)
LOAD: Responses = {
    200: _said("Success: LoRA adapter 'acme/spam' added successfully."),
    **native_errors(
        *_CHANGE_ERRORS, AlreadyLoadedError("adapter 'acme/spam' is loaded: version 3 answers", param="lora_name")
    ),
}
UNLOAD_BODY = _body("VllmUnloadRequest", {"unload": {"lora_name": "acme/spam"}})
UNLOAD: Responses = {
    200: _said("Success: LoRA adapter 'acme/spam' removed successfully."),
    **native_errors(*_CHANGE_ERRORS),
}
