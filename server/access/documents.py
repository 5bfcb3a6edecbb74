"""What /openapi.json says of access: which scope each operation needs, and how it is refused without."""

from collections.abc import Mapping
from typing import Any

from server.access.gate import Scopes
from server.errors import ForbiddenError, RateLimitedError, UnauthenticatedError
from server.openapi import native_errors, problem_errors, v2_errors

_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, ad_..., made by `adakron keys create`. A server without keys asks for none.",
}
_REFUSALS = (
    UnauthenticatedError("this route needs a key", hint="send one as 'Authorization: Bearer ...'"),
    ForbiddenError("this key has not the scope admin", hint="adakron keys create makes one that has"),
    RateLimitedError("this key has had its 6000 rows of this minute", hint="send less at a time"),
)


def with_access(document: Mapping[str, Any], scopes: Scopes) -> dict[str, Any]:
    """`document` where every operation that `scopes` closes names its scope and its refusals."""
    paths = {
        path: {
            method: _with_refusals(path, operation, scopes.get((method.upper(), path)))
            for method, operation in operations.items()
        }
        for path, operations in document.get("paths", {}).items()
    }
    components = {**document.get("components", {}), "securitySchemes": {"key": _SCHEME}}
    return {**document, "paths": paths, "components": components}


def _with_refusals(path: str, operation: Mapping[str, Any], needed: Any) -> dict[str, Any]:
    if needed is None:
        return dict(operation)
    if path.startswith("/v1") or path == "/classify":
        refusals = native_errors(*_REFUSALS)
    elif path.startswith("/v2"):
        refusals = v2_errors(*_REFUSALS)
    else:
        refusals = problem_errors(path, *_REFUSALS)
    responses = dict(operation["responses"])
    for status, refusal in refusals.items():
        responses[str(status)] = _joined(responses.get(str(status)), refusal)
    return {**operation, "security": [{"key": [needed.scope]}], "responses": dict(sorted(responses.items()))}


def _joined(there: Mapping[str, Any] | None, refusal: dict[str, Any]) -> dict[str, Any]:
    """A response that shows the examples of both; the schema of an error is one for all."""
    if there is None:
        return refusal
    content = {
        media_type: {**body, "examples": {**body.get("examples", {}), **more["examples"]}}
        for (media_type, more), body in zip(refusal["content"].items(), there["content"].values(), strict=True)
    }
    return {**there, "content": content}
