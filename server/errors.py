"""What the service refuses or cannot do, one class per cause, each with its HTTP status and a stable code.

    ServerError
    ├── MalformedRequestError     400  a path, a Host or a framing of the body that is none
    ├── MalformedBodyError        400  not JSON, not UTF-8, or a length that is no length
    ├── UnauthenticatedError      401  no key, or none that is known and still holds
    ├── ForbiddenError            403  a good key that does not open this
    ├── RouteNotFoundError        404  no such route
    ├── AdapterNotFoundError      404  no adapter of this name
    ├── VersionNotFoundError      404  the adapter is there, this version of it is not
    ├── MethodNotAllowedError     405  the route is there, not with this method
    ├── RequestTimeoutError       408  the body came too slowly
    ├── ConflictError             409  the state forbids it, such as deleting the active version
    ├── PreconditionFailedError   412  If-Match names another generation
    ├── BodyTooLargeError         413  more bytes than the route takes
    ├── UriTooLongError           414  a path and query longer than any of ours
    ├── UnsupportedMediaTypeError 415  a content type or encoding that the route does not read
    ├── InvalidRequestError       422  JSON of the wrong shape, a limit passed, a malformed name
    ├── InputError                422  a text that cannot be classified; carries a code of its own
    ├── OverloadedError           429  more rows or tokens waiting than the server queues
    ├── RateLimitedError          429  more rows, or more wrong keys, than one caller may send in a minute
    ├── HeadersTooLargeError      431  more or longer header fields than the server reads
    ├── NotReadyError             503  starting, stopping, or behind the generation asked for
    ├── EngineFailedError         503  the engine raised on these rows
    ├── StorageUnavailableError   503  the catalogue or the blobs cannot be read or written now
    ├── DeadlineExceededError     504  not answered within the time the client gave
    ├── StorageFullError          507  no room for another artefact
    └── QuotaExceededError        507  no room for another artefact of this tenant

A message says what was expected and what was found, and quotes at most 64 characters of what a client sent.
Knows nothing of how an error looks on the wire; `server.error_replies` does.
"""

from collections.abc import Mapping

MAX_QUOTED_CHARACTERS = 64

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    409: "ConflictError",
    412: "PreconditionFailedError",
    413: "PayloadTooLargeError",
    414: "UriTooLongError",
    415: "UnsupportedMediaTypeError",
    422: "InvalidRequestError",
    429: "OverloadedError",
    431: "HeadersTooLargeError",
    500: "InternalError",
    503: "UnavailableError",
    504: "TimeoutError",
    507: "InsufficientStorageError",
}


def type_of(status: int) -> str:
    """The `type` of an error body with this status: the coarse word, where `code` is the fine one."""
    return _TYPES.get(status, "InvalidRequestError" if status < 500 else "InternalError")


def quoted(text: str) -> str:
    """`text` as it may appear in a message or a log line: in quotes, escaped, cut to 64 characters."""
    escaped = ascii(text[:MAX_QUOTED_CHARACTERS])[1:-1]
    shortened = len(text) > MAX_QUOTED_CHARACTERS or len(escaped) > MAX_QUOTED_CHARACTERS
    return f"'{escaped[:MAX_QUOTED_CHARACTERS]}{'...' if shortened else ''}'"


class ServerError(Exception):
    """Base of all errors raised on purpose by the service.

    status         HTTP status
    code           stable, for programs: UPPER_SNAKE
    param          the request field at fault, "items.3.text", or None
    hint           what the reader can do about it, or None
    retry_after_s  when to try again, where the server can tell; 429 and 503 get a short random one otherwise
    details        further facts for the reply, plain JSON: {"tensor": .., "expected": .., "found": ..}
    """

    status: int = 500
    code: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        retry_after_s: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})

    @property
    def type(self) -> str:
        return type_of(self.status)


class MalformedRequestError(ServerError):
    """A path, a Host or a framing of the body that is none."""

    status = 400
    code = "MALFORMED_REQUEST"


class MalformedBodyError(ServerError):
    """Not JSON, not UTF-8, or a length that is no length."""

    status = 400
    code = "MALFORMED_BODY"


class UnauthenticatedError(ServerError):
    """No key, or none that is known and still holds."""

    status = 401
    code = "UNAUTHENTICATED"


class ForbiddenError(ServerError):
    """A good key that does not open this."""

    status = 403
    code = "FORBIDDEN"


class RouteNotFoundError(ServerError):
    """No such route."""

    status = 404
    code = "ROUTE_NOT_FOUND"


class AdapterNotFoundError(ServerError):
    """No adapter of this name."""

    status = 404
    code = "ADAPTER_NOT_FOUND"


class VersionNotFoundError(ServerError):
    """The adapter is there, this version of it is not."""

    status = 404
    code = "VERSION_NOT_FOUND"


class MethodNotAllowedError(ServerError):
    """The route is there, not with this method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"


class RequestTimeoutError(ServerError):
    """The body came too slowly."""

    status = 408
    code = "REQUEST_TIMEOUT"


class ConflictError(ServerError):
    """The state forbids it, such as deleting the active version."""

    status = 409
    code = "CONFLICT"


class PreconditionFailedError(ServerError):
    """If-Match names another generation."""

    status = 412
    code = "PRECONDITION_FAILED"


class BodyTooLargeError(ServerError):
    """More bytes than the route takes."""

    status = 413
    code = "BODY_TOO_LARGE"


class UriTooLongError(ServerError):
    """A path and query longer than any of ours."""

    status = 414
    code = "URI_TOO_LONG"


class UnsupportedMediaTypeError(ServerError):
    """A content type or encoding that the route does not read."""

    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class InvalidRequestError(ServerError):
    """JSON of the wrong shape, a limit passed, a malformed name."""

    status = 422
    code = "INVALID_REQUEST"


class InputError(ServerError):
    """A text that cannot be classified. `code` is the row's own: BLANK_TEXT, MISSING_PAIR, TOO_LONG, ..."""

    status = 422
    code = "INVALID_INPUT"

    def __init__(self, message: str, *, code: str, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, param=param, hint=hint)
        self.code = code


class OverloadedError(ServerError):
    """More rows or tokens waiting than the server queues."""

    status = 429
    code = "OVERLOADED"


class RateLimitedError(ServerError):
    """More rows, or more wrong keys, than one caller may send in a minute."""

    status = 429
    code = "RATE_LIMITED"


class HeadersTooLargeError(ServerError):
    """More or longer header fields than the server reads."""

    status = 431
    code = "HEADERS_TOO_LARGE"


class NotReadyError(ServerError):
    """Starting, stopping, or behind the generation asked for."""

    status = 503
    code = "NOT_READY"


class EngineFailedError(ServerError):
    """The engine raised on these rows."""

    status = 503
    code = "ENGINE_FAILED"


class StorageUnavailableError(ServerError):
    """The catalogue or the blobs cannot be read or written now."""

    status = 503
    code = "STORAGE_UNAVAILABLE"


class DeadlineExceededError(ServerError):
    """Not answered within the time the client gave."""

    status = 504
    code = "DEADLINE_EXCEEDED"


class StorageFullError(ServerError):
    """No room for another artefact."""

    status = 507
    code = "STORAGE_FULL"


class QuotaExceededError(ServerError):
    """No room for another artefact of this tenant."""

    status = 507
    code = "QUOTA_EXCEEDED"


def unknown_adapter(name: str, hint: str = "GET /v1/adapters lists the names") -> AdapterNotFoundError:
    """What every admin route says of a name that is not there, or not there for the caller: the two must not differ."""
    return AdapterNotFoundError(f"no adapter {name!r}", param="name", hint=hint)
