"""What is known of the request that is being answered: for its log line, and for every other line written meanwhile.

Set around each request by `server.metrics.RequestRecorder`, filled in on the way by whoever knows, and carried along by
the context of its task. Holds names, numbers and ids: never a text, a label or a key. Knows nothing of logging.
"""

import re
from collections.abc import Callable
from contextvars import ContextVar, Token

from starlette.types import Scope

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})


class RequestNotes:
    """Of one request.

    trace        (trace id, span id) in hex of its own span, where there are spans
    key_id       of the key that was shown
    adapter      "name@version" where one took part; several, if others did too, are a number
    rows, failed_rows   of the call; stages_s: seconds by stage, where it came to its end
    error        the code of the error that was answered
    """

    __slots__ = ("adapter", "adapters", "error", "failed_rows", "key_id", "rows", "scope", "stages_s", "trace")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.trace: tuple[str, str] | None = None
        self.key_id: str | None = None
        self.adapter: str | None = None
        self.adapters = 0
        self.rows: int | None = None
        self.failed_rows = 0
        self.stages_s: tuple[float, float, float] | None = None
        self.error: str | None = None

    def ids(self, request_id_of: Callable[[Scope], str]) -> dict[str, str]:
        """The request's id, and those of its span: its own, or else the one that it came from."""
        ids = {"request_id": request_id_of(self.scope)}
        trace = self.trace or _caller_of(self.scope)
        return ids if trace is None else ids | {"trace_id": trace[0], "span_id": trace[1]}


def method_of(scope: Scope) -> str:
    """The request's method, if it is one that HTTP knows."""
    method: str = scope["method"]
    return method if method in _METHODS else "other"


def route_of(scope: Scope) -> str:
    """The pattern of the route that matched, or "other"."""
    return str(getattr(scope.get("route"), "path", "other"))


_current: ContextVar[RequestNotes | None] = ContextVar("request_notes", default=None)


def current_notes() -> RequestNotes | None:
    """Of the request that is being answered, if there is one."""
    return _current.get()


def begin_notes(notes: RequestNotes) -> Token[RequestNotes | None]:
    """A request begins. Give the token to `end_notes` in the same task."""
    return _current.set(notes)


def end_notes(token: Token[RequestNotes | None]) -> None:
    """The request is answered."""
    _current.reset(token)


def _caller_of(scope: Scope) -> tuple[str, str] | None:
    """The span that a W3C traceparent names."""
    for name, value in scope["headers"]:
        if name == b"traceparent" and (found := _TRACEPARENT.fullmatch(value)) is not None:
            return found[1].decode(), found[2].decode()
    return None
