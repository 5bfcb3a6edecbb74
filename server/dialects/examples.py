"""What the dialects take and answer, by example: every status of every route, each error with a message it has."""

from typing import Any

from server.errors import (
    AdapterNotFoundError,
    BodyTooLargeError,
    ConflictingAdapterError,
    DeadlineExceededError,
    EngineFailedError,
    InputError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    OverloadedError,
    ServerError,
    VersionNotFoundError,
)
from server.examples import GUARD_ERRORS, NOT_READY
from server.openapi import Responses, json_answer, problem_errors

_SHA256 = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_SCORES = [{"label": "spam", "score": 0.9}, {"label": "ham", "score": 0.1}]

UNKNOWN_ERRORS: tuple[ServerError, ...] = (
    AdapterNotFoundError("no adapter 'acme/span'", param="adapter", hint="did you mean 'acme/spam'?"),
    VersionNotFoundError("adapter 'acme/spam' has no version 9", param="adapter", hint="it has 1, 2 and 3"),
    InvalidRequestError("not an adapter name: 'Acme'", param="adapter"),
    NotReadyError("version 3 of acme/spam cannot be served: it is not loaded", retry_after_s=2),
)
CALL_ERRORS: tuple[ServerError, ...] = (
    *GUARD_ERRORS,
    *UNKNOWN_ERRORS,
    MalformedBodyError("the body is not JSON: Expecting value at line 1, column 13"),
    BodyTooLargeError("the body has more than 1048576 bytes, the most that is read here"),
    ConflictingAdapterError("the path names adapter 'acme/spam', X-Adapter-Id names 'acme/ham'", param="X-Adapter-Id"),
    InputError("the text is blank", code="BLANK_TEXT", param="inputs.1", hint="send at least one word"),
    OverloadedError("70000 tokens are waiting, and the server queues at most 65536"),
    EngineFailedError("the engine failed on this adapter's rows"),
    DeadlineExceededError("not answered within 0.5 s"),
)
_BASE = "/adapters/acme/spam"


def _body(title: str, named: dict[str, object]) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in named.items()}
    content = {"schema": {"$ref": f"#/components/schemas/{title}"}, "examples": examples}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


HUGGING_FACE_BODY = _body(
    "HuggingFaceRequest",
    {
        "one text": {"inputs": "free money", "parameters": {}},
        "best label of a pair": {
            "inputs": {"text": "A man plays.", "text_pair": "Somebody makes music."},
            "parameters": {"top_k": 1, "function_to_apply": "softmax"},
        },
        "several texts": {"inputs": ["free money", "see you at nine"]},
    },
)
HUGGING_FACE: Responses = {
    200: json_answer("One list of labels a text, best first.", {"one text": [_SCORES]}),
    **problem_errors(_BASE, *CALL_ERRORS),
}
PREDICT_BODY = _body(
    "PredictRequest",
    {
        "one text": {"inputs": "free money"},
        "one pair": {"inputs": ["A man plays.", "Somebody makes music."], "raw_scores": True},
        "a batch": {"inputs": [["free money"], ["see you", "at nine"]], "truncate": False},
    },
)
PREDICT: Responses = {
    200: json_answer("Labels, best first; of a batch, one list a text.", {"one text": _SCORES, "a batch": [_SCORES]}),
    **problem_errors(f"{_BASE}/predict", *CALL_ERRORS),
}
ADAPTER_INFO: Responses = {
    200: json_answer(
        "The adapter.",
        {
            "info": {
                "model_id": "acme/spam",
                "model_sha": _SHA256,
                "model_dtype": "bfloat16",
                "served_model_name": "acme/spam@3",
                "model_type": {
                    "classifier": {"id2label": {"0": "ham", "1": "spam"}, "label2id": {"ham": 0, "spam": 1}}
                },
                "max_concurrent_requests": 4096,
                "max_input_length": 128,
                "max_batch_tokens": 2048,
                "max_batch_requests": None,
                "max_client_batch_size": 128,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": "0.1.0",
                "sha": None,
                "docker_label": None,
            }
        },
    ),
    **problem_errors(f"{_BASE}/info", *GUARD_ERRORS, *UNKNOWN_ERRORS),
}
ADAPTER_HEALTH: Responses = {
    200: json_answer("It can.", {"ready": {"status": "ready"}}),
    **problem_errors(f"{_BASE}/health", *GUARD_ERRORS, *UNKNOWN_ERRORS, NOT_READY),
}
