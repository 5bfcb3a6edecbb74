"""One call's rows on their way through the batcher: what came of each, who holds one now, and when all of it is over.

Knows rows, outcomes and times; nothing of queues, threads or batches.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adakron import Result, Row, RowError
from server.classify_engine import Lease
from server.errors import ServerError

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext  # installed only where traces are wanted

    from server.batcher import Batcher

Outcome = Result | RowError | ServerError


class Stages(NamedTuple):
    """Where a call's time went, in seconds; each counts the wait for its thread."""

    tokenize_s: float
    queue_s: float
    forward_s: float


class Submission:
    """One call's rows on their way. Await `outcomes()`; afterwards, whatever happened, call `when_idle`."""

    __slots__ = (
        "_batcher",
        "_future",
        "_on_idle",
        "arrived_s",
        "batches",
        "characters",
        "deadline_s",
        "encoded_s",
        "failure",
        "finished_s",
        "held_by_threads",
        "is_abandoned",
        "leases",
        "rows",
        "settled",
        "span",
        "started_s",
        "unsettled",
        "waiting_rows",
        "waiting_tokens",
    )

    def __init__(
        self,
        batcher: "Batcher",
        rows: Sequence[Row],
        leases: Sequence[Lease],
        deadline_s: float,
        future: "asyncio.Future[list[Outcome]]",
    ) -> None:
        self._batcher = batcher
        self._future = future
        self._on_idle: Callable[[], None] | None = None
        self.span: SpanContext | None = None  # of the request, where it is traced
        self.batches: Sequence[SpanContext] | None = None  # those it had rows in, where it is traced
        # From here on: guarded by the batcher's lock.
        self.rows = rows
        self.leases = leases
        self.deadline_s = deadline_s
        self.characters = sum(len(row.text or "") + len(row.text_pair or "") for row in rows)
        self.settled: list[Outcome | None] = [None] * len(rows)
        self.unsettled = len(rows)
        self.held_by_threads = 0  # rows of ours inside encode or run now
        self.waiting_rows = 0
        self.waiting_tokens = 0
        self.failure: ServerError | None = None
        self.is_abandoned = False
        self.arrived_s = self.encoded_s = self.started_s = self.finished_s = time.monotonic()

    async def outcomes(self) -> list[Outcome]:
        """One outcome a row, in order.

        Raises DeadlineExceededError, OverloadedError, NotReadyError or EngineFailedError where the call fails whole.
        """
        return await self._future

    def when_idle(self, release: Callable[[], None]) -> None:
        """Give the call up if it is not finished; call `release` on the event loop once no thread holds a row of it.

        That is at once where none does, as always after `outcomes` has returned.
        """
        self._on_idle = release
        if self._batcher.abandon(self):
            self.report()

    def stages(self) -> Stages:
        """Meaningful once `outcomes` has returned."""
        return Stages(
            self.encoded_s - self.arrived_s, self.started_s - self.encoded_s, self.finished_s - self.started_s
        )

    @property
    def is_alive(self) -> bool:
        """Whether anybody still waits for the rows that have not run."""
        return self.failure is None and not self.is_abandoned

    @property
    def is_complete(self) -> bool:
        """Whether the future can be resolved."""
        return self.unsettled == 0 or self.failure is not None

    @property
    def is_idle(self) -> bool:
        """Whether no thread holds a row now, nor ever will again."""
        return self.held_by_threads == 0 and (self.unsettled == 0 or not self.is_alive)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Record a row's outcome; the first one counts."""
        if self.settled[index] is None:
            self.settled[index] = outcome
            self.unsettled -= 1

    def report(self) -> None:
        """On the event loop: resolve the future if it is time, release if it is time. May be called again."""
        if self.is_complete and not self._future.done():
            if self.failure is not None:
                self._future.set_exception(self.failure)
                self._future.exception()  # seen: a call that was cancelled meanwhile will not ask for it
            else:
                self._future.set_result([outcome for outcome in self.settled if outcome is not None])
        if self._on_idle is not None and self.is_idle:
            release, self._on_idle = self._on_idle, None
            release()
            if self.span is not None:
                self._batcher.trace_stages(self)
