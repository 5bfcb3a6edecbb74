"""The parts of the OpenAPI document that FastAPI cannot infer: bodies read by hand, errors by class, two applications.

Knows the shapes of errors and how documents are joined; nothing of any one route.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from server.errors import ServerError

EXAMPLE_REQUEST_ID = "6e0a4a3b5c7d4b1e9f2a8c0d1e3f5a7b"
_REF_TEMPLATE = "#/components/schemas/{model}"

Responses = dict[int | str, dict[str, Any]]

_NATIVE_ERROR: dict[str, Any] = {
    "title": "ErrorReply",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param", "hint", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "hint": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
        }
    },
}
_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "error", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "hint": {"type": ["string", "null"]},
        "error": {"type": "string"},
        "error_type": {"type": "string"},
        "request_id": {"type": "string"},
    },
}


_V2_ERROR: dict[str, Any] = {
    "title": "InferenceError",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string"},
        "error_type": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
    },
}


def native_errors(*examples: ServerError) -> Responses:
    """`responses=` entries for routes below /v1: one a status, with every given error as an example of its status."""
    by_status: dict[int, dict[str, Any]] = {}
    for error in examples:
        body = {
            "message": error.message,
            "type": error.type,
            "code": error.code,
            "param": error.param,
            "hint": error.hint,
            "request_id": EXAMPLE_REQUEST_ID,
        }
        by_status.setdefault(error.status, {})[error.code] = {"value": {"error": body}}
    return {
        status: _response(status, "application/json", _NATIVE_ERROR, named)
        for status, named in sorted(by_status.items())
    }


def v2_errors(*examples: ServerError) -> Responses:
    """The same for routes below /v2."""
    by_status: dict[int, dict[str, Any]] = {}
    for error in examples:
        body = {
            "error": f"{error.message} Hint: {error.hint}" if error.hint else error.message,
            "error_type": error.type,
            "code": error.code,
            "request_id": EXAMPLE_REQUEST_ID,
        }
        by_status.setdefault(error.status, {})[error.code] = {"value": body}
    return {
        status: _response(status, "application/json", _V2_ERROR, named) for status, named in sorted(by_status.items())
    }


def problem_errors(path: str, *examples: ServerError) -> Responses:
    """The same for the route `path` outside of /v1, as application/problem+json."""
    by_status: dict[int, dict[str, Any]] = {}
    for error in examples:
        body = {
            "type": f"urn:adakron:error:{error.code.lower().replace('_', '-')}",
            "title": HTTPStatus(error.status).phrase,
            "status": error.status,
            "detail": error.message,
            "instance": path,
            "code": error.code,
            "param": error.param,
            "hint": error.hint,
            "error": error.message,
            "error_type": error.type,
            "request_id": EXAMPLE_REQUEST_ID,
        }
        by_status.setdefault(error.status, {})[error.code] = {"value": body}
    return {
        status: _response(status, "application/problem+json", _PROBLEM, named)
        for status, named in sorted(by_status.items())
    }


def json_answer(description: str, examples: Mapping[str, object], model: Any | None = None) -> dict[str, Any]:
    """The `responses=` entry of a success in JSON; `model` is any type pydantic can describe."""
    named = {name: {"value": value} for name, value in examples.items()}
    answer: dict[str, Any] = {"description": description, "content": {"application/json": {"examples": named}}}
    return answer | ({"model": model} if model is not None else {})


def schemas_of(*models: Any) -> dict[str, Any]:
    """Component schemas by name for models that no route declares, because it reads its body by hand."""
    components: dict[str, Any] = {}
    for model in models:
        schema = TypeAdapter(model).json_schema(ref_template=_REF_TEMPLATE)
        components.update(schema.pop("$defs", {}))
        components[schema["title"]] = schema
    return components


def json_body(models: Sequence[type[Any]], examples: Mapping[str, object]) -> dict[str, Any]:
    """`openapi_extra=` of a route whose JSON body is any one of `models`."""
    refs = [{"$ref": _REF_TEMPLATE.format(model=model.__name__)} for model in models]
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": {"anyOf": refs}, "examples": named}}
    return {"requestBody": {"required": True, "content": content}}


def merged(document: Mapping[str, Any], other: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the paths, component schemas and tags of `other`, and with `schemas` among its components.

    Raises ValueError where both describe the same path, or two different schemas have one name.
    """
    paths = _united("path", document.get("paths", {}), other.get("paths", {}))
    ours: Mapping[str, Any] = document.get("components", {})
    theirs: Mapping[str, Any] = other.get("components", {})
    components: dict[str, Any] = {**theirs, **ours}
    components["schemas"] = _united("schema", ours.get("schemas", {}), theirs.get("schemas", {}), schemas)
    tags = [*document.get("tags", []), *other.get("tags", [])]
    return {**document, "paths": paths, "components": components, **({"tags": tags} if tags else {})}


def _united(what: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    union: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if union.setdefault(name, value) != value:
                raise ValueError(f"two different descriptions of {what} {name}")
    return union


def _response(status: int, media_type: str, schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {media_type: {"schema": schema, "examples": examples}},
    }
