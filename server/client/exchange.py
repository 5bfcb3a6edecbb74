"""One request until it is answered, without sending it: what is sent, when it is sent again, what an error means.

A `Flow` is a generator that yields a Request, is given the Response, and returns what its caller wants: a call of the
client, written once for both transports. `Attempts` tells a transport after each try whether to wait and try again.
Nothing here reads a socket or a clock.
"""

import inspect
import json
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar, get_args

import httpx

from server.client.errors import (
    ClientError,
    ConfigurationError,
    DeadlineError,
    UnexpectedAnswerError,
    UnreachableError,
    class_of,
)

T = TypeVar("T")

FIRST_PAUSE_S = 0.5
# A server that asks for more is not waited for: the caller is told, with `retry_after_s`.
LONGEST_PAUSE_S = 30.0
_AGAIN = frozenset({429, 502, 503})
_PROXY = frozenset({500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Request:
    """What to send. Every request may be sent twice: it reads, is idempotent, or carries an Idempotency-Key.

    files        parts of multipart/form-data: name, file name, bytes
    sends_again  whether a failure is worth another try
    within_s     what it may take, where that is more than the client's timeout
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[tuple[str, str, bytes]] = ()
    sends_again: bool = True
    within_s: float | None = None

    def build(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The same for httpx: anew for every try, as a body is read once."""
        files = [(name, (file_name, data)) for name, file_name, data in self.files]
        timeout = (
            client.timeout if self.within_s is None else httpx.Timeout(self.within_s, connect=client.timeout.connect)
        )
        return client.build_request(
            self.method,
            self.path,
            params=self.params,
            headers=self.headers,
            content=self.content,
            files=files or None,
            timeout=timeout,
        )


Flow: TypeAlias = Generator[Request, httpx.Response, T]


class Attempts:
    """The tries of one request. `url` names the server in messages: without password."""

    def __init__(self, request: Request, *, attempts: int, url: str) -> None:
        self._left = attempts if request.sends_again else 1
        self._pause_s = FIRST_PAUSE_S
        self._url = url

    def pause_s(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to wait before the next try; None where `outcome` is the response to go on with.

        Raises ClientError where there is no response and there will be none.
        """
        self._left -= 1
        if isinstance(outcome, httpx.Response):
            if self._left <= 0 or not _is_passing(outcome):
                return None
            asked_s = retry_after_s(outcome)
            if asked_s is not None and asked_s > LONGEST_PAUSE_S:
                return None
        else:
            asked_s = None
            if isinstance(outcome, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                # Its text may quote the header with the key: not a word of it, and it is no cause either.
                raise ConfigurationError(
                    "the request cannot be sent", hint="is ADAKRON_URL an http address, and ADAKRON_API_KEY one line?"
                )
            if isinstance(outcome, httpx.TimeoutException):
                raise DeadlineError(
                    f"{self._url} did not answer in time", hint="allow more with timeout_s"
                ) from outcome
            if self._left <= 0:
                raise UnreachableError(
                    f"no server answers at {self._url}", hint="is it running, and is ADAKRON_URL right?"
                ) from outcome
        own_s, self._pause_s = self._pause_s * random.uniform(0.8, 1.2), self._pause_s * 2
        # Never sooner than asked; later by chance, so that clients turned away together do not come back together.
        return own_s if asked_s is None else asked_s * random.uniform(1.0, 1.25)


def method_signature(call: Callable[..., Flow[Any]]) -> inspect.Signature:
    """That of the method which runs a call to its end: `self` before it, and what the flow returns in the end."""
    signature = inspect.signature(call)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    returned = get_args(signature.return_annotation)[-1]
    return signature.replace(parameters=[own, *signature.parameters.values()], return_annotation=returned)


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that Retry-After asks for, as a number or as a date; None where it does not."""
    asked = response.headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a success. Raises ClientError for an error and for anything else."""
    check(response)
    found = _json_object(response)
    if found is None:
        raise unexpected(response)
    return found


def check(response: httpx.Response) -> None:
    """Raise what the server says, unless it is a success."""
    if not response.is_success:
        raise error_of(response)


def error_of(response: httpx.Response) -> ClientError:
    """The error in a reply, in either of the forms that the server writes, or in a proxy's."""
    error = error_members(response)
    if error is None:
        if response.is_redirect:
            return unexpected(response)
        error = {"code": f"HTTP_{response.status_code}", "message": response.reason_phrase or "no reason given"}
    status, message, hint = response.status_code, str(error.pop("message")), error.pop("hint", None)
    if status == 504:
        return DeadlineError(message, hint=hint)
    known = {name: error.pop(name, None) for name in ("param", "request_id")}
    known["request_id"] = known["request_id"] or response.headers.get("x-request-id")
    code = str(error.pop("code"))
    return class_of(status)(
        status, code, message, hint=hint, retry_after_s=retry_after_s(response), details=error, **known
    )


def error_members(response: httpx.Response) -> dict[str, Any] | None:
    """`error` of a reply below /v1, or the members of a problem: with `code` and `message`. None for anything else."""
    body = _json_object(response) or {}
    error = body.get("error")
    members = dict(error) if isinstance(error, dict) else {**body, "message": body.get("detail")}
    return members if isinstance(members.get("code"), str) and isinstance(members.get("message"), str) else None


def unexpected(response: httpx.Response) -> UnexpectedAnswerError:
    """The error for a reply that no AdaKron server gives."""
    return UnexpectedAnswerError(
        f"the answer to {response.request.method} {response.request.url.path} is not an AdaKron server's "
        f"({response.status_code})",
        hint="is ADAKRON_URL right?",
    )


def _is_passing(response: httpx.Response) -> bool:
    """Whether another try may be answered. A bare 500 is the proxy's word for a replica that died under the request."""
    is_proxy = response.status_code in _PROXY and "json" not in response.headers.get("content-type", "")
    return response.status_code in _AGAIN or is_proxy


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        found = json.loads(response.content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
