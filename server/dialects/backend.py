"""What every dialect stands on: the one service call, the adapters as this replica has them, and the admin plane.

A dialect translates: its body into rows, results into its reply. Limits, statuses and errors are those of
POST /v1/classify, but that a batch fails whole: no dialect here has a place for one row's error. Knows nothing of any
one dialect.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from adakron import Result
from server.admin_plane import AdminPlane
from server.answers import Identity, Place, row_error
from server.call_headers import reply_headers, timeout_s
from server.disconnect import unless_gone
from server.errors import ConflictingAdapterError, InvalidRequestError, ServerError, quoted
from server.names import Reference
from server.records import Snapshot
from server.replica import Described
from server.schemas import parse_classify_request
from server.service import Service
from server.submission import Stages
from server.tally import Count
from server.validation import invalid_request

# A catalogue may hold any number of names; one reply holds no more than these.
MAX_LISTED = 10_000

Body = TypeVar("Body", bound=BaseModel)


class Adapters(Protocol):
    """The adapters of this replica; `server.replica.Replica` is one."""

    @property
    def table(self) -> Snapshot:
        """Everything registered, as of the generation that is served."""
        ...

    @property
    def broken(self) -> Mapping[str, str]:
        """sha256 -> why it could not be loaded."""
        ...

    async def describe(self, reference: Reference) -> Described:
        """What a reference means. Raises AdapterNotFoundError, VersionNotFoundError, NotReadyError."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """The parts, joined by `server.app`.

    info     plain JSON about backbone and limits, as GET /v1/info has it
    is_ready whether backbone and adapters really answered, just now or a moment ago
    tallies  what all replicas counted for these contents; None for all that have a count
    """

    service: Service
    adapters: Adapters
    admin: AdminPlane
    info: Callable[[], Mapping[str, Any]]
    is_ready: Callable[[], Awaitable[bool]]
    tallies: Callable[[Collection[str] | None], Awaitable[dict[str, Count]]]


class Text(NamedTuple):
    """One row."""

    text: str
    text_pair: str | None = None


class Answered(NamedTuple):
    """One result a row, by whom, and the reply's headers."""

    results: list[Result]
    adapter: Identity
    stages: Stages
    headers: dict[str, str]


async def classify(
    backend: Backend,
    request: Request,
    reference: str,
    rows: Sequence[Text],
    *,
    field: str,
    adapter_field: str,
    truncate: bool = True,
    within_s: float | None = None,
) -> Answered:
    """Run rows through one adapter.

    field, adapter_field  what the dialect calls the texts and the adapter; errors name them so
    within_s              the dialect's own deadline; that of the header X-Timeout-S holds besides

    Raises what `Service.classify` does, and the first row's error where any row failed.
    """
    limit_s = timeout_s(request)
    inputs = [row.text if row.text_pair is None else row._asdict() for row in rows]
    body = {"adapter": reference, "inputs": inputs, "truncate": truncate}
    try:
        work = backend.service.classify(
            parse_classify_request(body),
            timeout_s=limit_s if within_s is None else min(limit_s, within_s),
            route_key=request.headers.get("x-route-key"),
        )
        classified = await unless_gone(request.receive, work)
        results = []
        for index, outcome in enumerate(classified.outcomes):
            if not isinstance(outcome, Result):
                raise row_error(outcome, Place(f"inputs.{index}", rows[index].text_pair is None))
            results.append(outcome)
    except ServerError as error:
        _rename(error, field, adapter_field, is_only=len(rows) == 1)
        raise
    assert classified.adapter is not None  # one adapter was asked
    return Answered(results, classified.adapter, classified.stages, reply_headers(classified))


def parsed(form: type[Body], value: object) -> Body:
    """A decoded body in its form. Raises InvalidRequestError (422), which names the field."""
    if not isinstance(value, dict):
        raise InvalidRequestError("the body should be a JSON object")
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


def agreed(*named: tuple[str, str | None]) -> str | None:
    """The adapter that those (place, reference) name which name one; None where none does.

    Raises ConflictingAdapterError (400) where two differ.
    """
    given = [(place, reference) for place, reference in named if reference is not None]
    for place, reference in given[1:]:
        if reference != given[0][1]:
            raise ConflictingAdapterError(
                f"{given[0][0]} names adapter {quoted(given[0][1])}, {place} names {quoted(reference)}",
                param=place,
                hint="name one adapter, in one place",
            )
    return given[0][1] if given else None


def _rename(error: ServerError, field: str, adapter_field: str, *, is_only: bool) -> None:
    """Let the error speak of its place as the dialect does, where it speaks of "inputs" or "adapter"."""
    param = error.param
    if param == "adapter":
        error.param = adapter_field
    elif param is not None and param.partition(".")[0] == "inputs":
        rest = param.removeprefix("inputs")
        error.param = field + (rest.removeprefix(".0") if is_only else rest)
    else:
        return
    error.message = error.message.replace(f"{param}:", f"{error.param}:", 1)
