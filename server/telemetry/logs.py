"""Logs: one JSON object a line, or text for a person; whatever a library logs comes out in the same form.

    timestamp, level, logger, event        always
    process                                "launcher", "admin", or the id of a replica
    request_id, trace_id, span_id          while a request is answered
    exception                              where one was caught

Of a foreign exception only its class is written, with the lines it came through: its message may quote a text. With
ADAKRON_LOG_LEVEL=DEBUG it is written too. Keys, tokens and texts are never logged by anything of ours.
"""

import io
import json
import logging
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO, TypeAlias

import structlog
from starlette.types import Scope

from adakron.errors import AdaKronError
from server.error_replies import request_id_of
from server.errors import ServerError
from server.telemetry.notes import RequestNotes, current_notes, method_of, route_of

ACCESS = "server.access"
MAX_CAUSES = 5
_FIELDS = "adakron_fields"

EventDict: TypeAlias = MutableMapping[str, Any]

access_log = logging.getLogger(ACCESS)


def configure(stream: TextIO | io.TextIOBase, *, level: str, process: str, access_share: float = 0.0) -> None:
    """Have every logger of this process write JSON lines to `stream`, in place of what handled them before.

    level         least severity, but that lines of requests are written whenever some are asked for
    access_share  of requests that get a line; see `AccessLog`
    """
    shown = _Exceptions(has_messages=level == "DEBUG")
    chain: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda logger, method, event: {**event, "process": process},
        _add_fields,
        _add_request,
        shown,
    ]
    renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=chain
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    access_log.setLevel(logging.INFO if access_share else logging.NOTSET)


def own_stderr() -> TextIO:
    """Stderr of this process as the system has it: Ray puts an object of its own in the place of `sys.stderr`."""
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")


class LineStream(io.TextIOBase):
    """A stream that passes on each line written to it, without its end."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._pass_on = write

    def write(self, text: str) -> int:
        """One line."""
        self._pass_on(text.removesuffix("\n"))
        return len(text)


class TextRenderer:
    """A JSON line as text for a person. `colors` for terminals."""

    def __init__(self, *, colors: bool) -> None:
        self._console = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)

    def __call__(self, line: str) -> str:
        return str(self._console(None, "", json.loads(line)))


class AccessLog:
    """A line for an answered request: for a share of them, and for every one that failed by the server's fault.

    share  from 0 to 1
    """

    def __init__(self, share: float, draw: Callable[[], float] = random.random) -> None:
        self._share = share
        self._draw = draw

    def wants(self, status: int) -> bool:
        """Whether a request that was answered so is to be logged."""
        return status >= 500 or (self._share > 0 and (self._share >= 1 or self._draw() < self._share))

    def write(self, notes: RequestNotes, status: int, seconds: float) -> None:
        """The line."""
        scope = notes.scope
        fields: dict[str, Any] = {
            "method": method_of(scope),
            "route": route_of(scope),
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            "adapter": notes.adapter,
            "adapters": notes.adapters if notes.adapters > 1 else None,
            "rows": notes.rows,
            "failed_rows": notes.failed_rows or None,
            "key_id": notes.key_id,
            "error": notes.error,
        }
        if notes.stages_s is not None:
            for stage, seconds_in_it in zip(("tokenize_ms", "queue_ms", "forward_ms"), notes.stages_s, strict=True):
                fields[stage] = round(seconds_in_it * 1000, 3)
        known = {name: value for name, value in fields.items() if value is not None}
        level = logging.WARNING if status >= 500 else logging.INFO
        access_log.log(level, "request", extra={_FIELDS: known | notes.ids(request_id_of)})


def _add_fields(logger: object, method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return {**event, **fields}


def _add_request(logger: object, method: str, event: EventDict) -> EventDict:
    notes = current_notes()
    return event if notes is None or "request_id" in event else {**event, **notes.ids(_id_of)}


def _id_of(scope: Scope) -> str:
    return request_id_of(scope)


class _Exceptions:
    """Processor: `exc_info` becomes `exception`, of which nothing can be a client's text."""

    def __init__(self, *, has_messages: bool) -> None:
        self._has_messages = has_messages

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        info: tuple[type[BaseException], BaseException, TracebackType | None] | None = event.pop("exc_info", None)
        if isinstance(info, tuple) and info[1] is not None:
            event["exception"] = "".join(self._lines(info[1]))
        return event

    def _lines(self, error: BaseException) -> Iterator[str]:
        for number, cause in enumerate(_causes(error)):
            yield "" if number == 0 else "caused by "
            is_known = self._has_messages or isinstance(cause, AdaKronError | ServerError)
            yield f"{type(cause).__name__}: {cause}\n" if is_known else f"{type(cause).__name__}\n"
            yield from traceback.StackSummary.from_list(traceback.extract_tb(cause.__traceback__)).format()


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _to_json(event: EventDict, **options: Any) -> str:
    return json.dumps(event, **options)
