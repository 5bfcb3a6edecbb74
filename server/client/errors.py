"""What can go wrong between a client and its server, one class per cause.

    ClientError
    ├── ConfigurationError      the address or the key cannot be used in a request
    ├── UnreachableError        nobody answers there, or the connection broke, again and again
    ├── DeadlineError           no answer within the client's time (504 where the server noticed)
    ├── UnexpectedAnswerError   an answer that no AdaKron server gives
    └── StatusError             the server says why it does not do it
        ├── RefusedError        400, 405, 413, 414, 415, 422, 431: the request has to change
        ├── AccessError         401, 403: no key, a wrong one, or one without the scope
        ├── NotFoundError       404
        ├── ConflictError       409, 412: the server's state forbids it
        └── OverloadedError     429, 503: later, perhaps; `retry_after_s` where the server says when

Messages are one line and hold neither keys nor passwords. Knows nothing of requests.
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of all. `hint` is what the reader can do about it, or None."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class ConfigurationError(ClientError):
    """The address or the key cannot be used in a request."""


class UnreachableError(ClientError):
    """Nobody answers there, or the connection broke, again and again."""


class DeadlineError(ClientError):
    """No answer within the client's time."""


class UnexpectedAnswerError(ClientError):
    """An answer that no AdaKron server gives: another service, or a proxy between."""


class StatusError(ClientError):
    """The server's own word.

    status         HTTP status
    code           stable, for programs, such as ADAPTER_NOT_FOUND; "HTTP_502" where a proxy answered
    param          the request field at fault, or None
    request_id     finds this request in the server's log, or None
    retry_after_s  seconds after which the server may do it, or None
    details        whatever else the server said, such as {"tensor", "expected", "found"}
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}", hint=hint)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})


class RefusedError(StatusError):
    """The request has to change."""


class AccessError(StatusError):
    """No key, a wrong one, or one without the scope."""


class NotFoundError(StatusError):
    """No such adapter, version or route."""


class ConflictError(StatusError):
    """The server's state forbids it, or If-Match names another generation."""


class OverloadedError(StatusError):
    """The server has no time or is not ready."""


_CLASSES: Mapping[int, type[StatusError]] = {
    **dict.fromkeys((400, 405, 413, 414, 415, 422, 431), RefusedError),
    **dict.fromkeys((401, 403), AccessError),
    **dict.fromkeys((409, 412), ConflictError),
    **dict.fromkeys((429, 503), OverloadedError),
    404: NotFoundError,
}


def class_of(status: int) -> type[StatusError]:
    """The class that stands for a status; StatusError itself for those without one."""
    return _CLASSES.get(status, StatusError)
