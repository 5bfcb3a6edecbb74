"""From pydantic's complaints to one InvalidRequestError that says where and what, and never what was sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidRequestError, quoted

MAX_PROBLEMS = 8


def invalid_request(problems: Sequence[Mapping[str, Any]]) -> InvalidRequestError:
    """The error (422) for `ValidationError.errors()` or `RequestValidationError.errors()`.

    Its message is the first problem's; all, up to MAX_PROBLEMS, are in details["errors"] as {message, param}.
    """
    described = [{"message": _message(problem), "param": _param(problem)} for problem in problems[:MAX_PROBLEMS]]
    first = described[0]
    message = f"{first['param']}: {first['message']}" if first["param"] else str(first["message"])
    return InvalidRequestError(
        message, param=first["param"], details={"errors": described} if len(problems) > 1 else None
    )


def _message(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown field"
    text = str(problem["msg"])
    return text[:1].lower() + text[1:]


def _param(problem: Mapping[str, Any]) -> str | None:
    """The field's path, "items.3.text", without the names of union branches that pydantic puts in between."""
    parts = list(problem["loc"])
    if problem["type"] == "extra_forbidden":
        parts[-1] = quoted(str(parts[-1]))[1:-1]
    return ".".join(str(part) for part in parts if not str(part).startswith("<")) or None
