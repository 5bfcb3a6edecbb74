"""Rows of many calls, run in batches: admission, tokenizer thread, loader threads, fair queue, worker thread.

    submit -> [arrived] -- tokenizer thread: all that has arrived, one encode ------> [fair queue]
                           (the worker itself, where it has nothing to run: no thread more to wake)
                           adapter not on the device --> [waiting] -- loader thread ------^
              [fair queue] -- worker thread: cut a batch by tokens, one run --------> the call's future

Nothing waits for a timer: the worker takes what is there as soon as it is free. All threads take their work from
under one lock, so the event loop is not on the way between two batches; it only hears of calls that are finished.

A row in the fair queue holds a pin on its adapter's slots, and gives it back after its batch or when it is dropped. So
whatever is queued can run, and loading needs nothing that waits for it. Where a load would push another adapter off
the device, it waits while there is a batch to run without it: rows for one adapter gather, and one load serves them.

Every row that is submitted ends in an outcome or its call ends in an error, whatever dies. A row whose text is bad
never enters the queue. A call that nobody waits for any more is dropped before it runs, but its leases stay out until
no thread holds a row of it: `Submission.when_idle`.

Knows tokens, deadlines and threads; nothing of HTTP, JSON or what a label is.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from adakron import Row, RowError
from adakron.errors import AdaKronError, BankFullError
from server.classify_engine import ClassifyEngine, Encoded, Lease
from server.errors import DeadlineExceededError, EngineFailedError, NotReadyError, OverloadedError, ServerError
from server.fair_queue import FairQueue
from server.metrics import Metrics
from server.submission import Outcome, Submission
from server.tally import Tally
from server.telemetry.no_span import NO_SPAN, NoSpan
from server.waiting import WaitingForAdapters

if TYPE_CHECKING:  # installed only where traces are wanted
    from server.telemetry.tracing import BatchSpan, Tracing

logger = logging.getLogger(__name__)

# Reads of several adapters overlap; a store that does not answer holds up as many before others wait behind them.
LOADERS = 4
# What a miss waits for more rows of its adapter at most, in batches that run meanwhile.
LOAD_PATIENCE_BATCHES = 8

# What one encode call takes at most, so that a call with a megabyte of text does not hold up all that arrives after it.
MAX_ENCODE_CHARACTERS = 2**18


@dataclass(frozen=True, slots=True)
class Limits:
    """How much runs together and how much may wait.

    budget_tokens        of one batch; a longer single row runs alone
    queue_limit_tokens   waiting for the engine; a call beyond it is refused whole, unless nothing waits
    queue_limit_rows     waiting for tokenizer or engine
    """

    budget_tokens: int
    queue_limit_tokens: int
    queue_limit_rows: int


class _Queued(NamedTuple):
    submission: Submission
    place: int  # of the row in its call
    row: Encoded
    lane: str

    @property
    def lease(self) -> Lease:
        return self.submission.leases[self.place]


class Batcher:
    """See the module's text. `start`, `submit` and `stop` belong to one event loop.

    on_worker  what the thread that runs batches does before the first
    """

    def __init__(
        self,
        engine: ClassifyEngine,
        limits: Limits,
        metrics: Metrics,
        tracing: "Tracing | None" = None,
        on_worker: Callable[[], None] = lambda: None,
    ) -> None:
        self._tracing = tracing
        self._on_worker = on_worker
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self.tally = Tally()
        self._lock = threading.Lock()
        self._has_arrived = threading.Condition(self._lock)
        self._has_queued = threading.Condition(self._lock)
        self._has_waiting = threading.Condition(self._lock)
        self._arrived: deque[Submission] = deque()
        self._queue: FairQueue[_Queued] = FairQueue()
        self._waiting: WaitingForAdapters[_Queued] = WaitingForAdapters()
        self._live: set[Submission] = set()
        self._waiting_rows = 0
        self._waiting_tokens = 0
        self._batches = 0
        self._is_worker_idle = False
        self._is_waking = False  # the event loop alone reads and writes it
        self._refusal: ServerError | None = NotReadyError("the server is starting")
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all_done = asyncio.Event()
        metrics.queue_tokens.set_function(lambda: self._waiting_tokens)
        metrics.queue_rows.set_function(lambda: self._waiting_rows)

    def start(self) -> None:
        """Start the threads, from the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        loaders = [(f"loader-{number}", self._load) for number in range(LOADERS)]
        for name, work in (("tokenizer", self._tokenize), ("worker", self._work), *loaders):
            thread = threading.Thread(target=self._until_closed, args=(work, name), name=f"adakron-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def is_running(self) -> bool:
        """Whether rows are taken and all threads are alive."""
        return self._refusal is None and all(thread.is_alive() for thread in self._threads)

    def submit(self, rows: Sequence[Row], leases: Sequence[Lease], *, deadline_s: float) -> Submission:
        """Take a call's rows, all or none; leases[i] belongs to rows[i]. `deadline_s` is in time.monotonic().

        Raises OverloadedError (429), NotReadyError or EngineFailedError (503) when it takes none. A call whose tokens
        turn out to be too many gets its OverloadedError from `outcomes`, before any of its rows is queued.
        """
        submission = Submission(self, rows, leases, deadline_s, asyncio.get_running_loop().create_future())
        if self._tracing is not None:
            submission.span = self._tracing.current()
        with self._lock:
            if self._refusal is not None:
                raise self._counted(_again(self._refusal))
            if self._waiting_rows and self._waiting_rows + len(rows) > self._limits.queue_limit_rows:
                raise self._counted(self._overloaded("rows", self._waiting_rows, self._limits.queue_limit_rows))
            if self._waiting_tokens >= self._limits.queue_limit_tokens:
                raise self._counted(self._overloaded("tokens", self._waiting_tokens, self._limits.queue_limit_tokens))
            self._live.add(submission)
            self._wait_for(submission, rows=len(rows), tokens=0)
            self._arrived.append(submission)
        if not self._is_waking:
            # A thread is woken once for all calls of one turn of the loop: waking costs more than a short call's JSON.
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)
        return submission

    def trace_stages(self, submission: Submission) -> None:
        """Record where the time of a call went that is over."""
        try:
            if self._tracing is not None:
                self._tracing.stages(submission)
        except Exception:  # whatever telemetry does, calls are answered
            logger.exception("a call could not be traced")

    def abandon(self, submission: Submission) -> bool:
        """Nobody waits for this call any more; its rows in the queue die. Returns whether it is idle already."""
        with self._lock:
            if not submission.is_complete:
                submission.is_abandoned = True
            self._forget(submission)
            if submission.is_idle:
                self._live.discard(submission)
                self._note_if_done()
            return submission.is_idle

    async def stop(self, *, grace_s: float) -> None:
        """Refuse new calls, let those inside finish for `grace_s` seconds, fail the rest with NotReadyError; end the
        threads.
        """
        stopping = NotReadyError("the server is stopping", hint="try again: another replica will answer")
        with self._lock:
            self._refusal = self._refusal or stopping
            self._all_done.clear()
            self._note_if_done()
        try:
            async with asyncio.timeout(grace_s):
                await self._all_done.wait()
        except TimeoutError:
            logger.warning("%d calls were not finished within %.1f s of grace", len(self._live), grace_s)
        self._close(stopping)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 1.0)

    def _wake(self) -> None:
        self._is_waking = False
        with self._lock:
            if self._is_worker_idle and not self._queue:
                self._has_queued.notify()
            else:
                self._has_arrived.notify()

    # ---- the threads -------------------------------------------------------------------------------------------

    def _until_closed(self, work: Callable[[], None], name: str) -> None:
        try:
            work()
        except BaseException:
            # Not even SystemExit from inside the engine may leave rows without an answer or the server looking well.
            logger.critical("the %s thread died; this process serves no more", name, exc_info=True)
            self._close(EngineFailedError("this replica's engine has stopped", hint="try again: another will answer"))

    def _tokenize(self) -> None:
        while True:
            with self._lock:
                while not self._arrived and not self._is_closed:
                    self._has_arrived.wait()
                if self._is_closed:
                    return
                calls, dropped = self._take_arrived()
            self._tokenize_calls(calls, dropped)

    def _tokenize_calls(self, calls: list[Submission], dropped: list[Submission]) -> None:
        encoded: list[Sequence[Encoded | RowError] | EngineFailedError] = []
        try:
            if calls:
                encoded = self._encode(calls)
        finally:
            with self._lock:
                for call in calls:
                    call.held_by_threads -= len(call.rows)
                for call, rows in zip(calls, encoded, strict=False):  # unequal only where _encode raised
                    self._enqueue(call, rows)
                self._has_queued.notify()
                self._wake_loaders()
            self._tell(finished=[*dropped, *calls])

    def _load(self) -> None:
        while True:
            with self._lock:
                while not self._is_closed and not self._is_time_to_load():
                    self._has_waiting.wait()
                if self._is_closed:
                    return
                key, rows = self._waiting.next()
                now_s = time.monotonic()
                # One of those that are alive lends its lease: it cannot be released while a thread holds its row.
                lender = next((queued for queued in rows if self._is_worth_running(queued.submission, now_s)), None)
                if lender is None:
                    self._metrics.cancelled_rows.inc(len(self._waiting.take(key)))
                else:
                    lender.submission.held_by_threads += 1
            if lender is None:
                self._tell(finished=[queued.submission for queued in rows])
                continue
            error: ServerError | None = EngineFailedError("the adapter's loader has stopped")
            try:
                error = self._fetch(lender)
            finally:
                with self._lock:
                    lender.submission.held_by_threads -= 1
                    waited = self._waiting.take(key) if not self._is_closed else []
                    self._after_load(waited, lender, error)
                    self._has_queued.notify()
                    self._wake_loaders()
                self._tell(finished=[lender.submission, *(queued.submission for queued in waited)])

    def _work(self) -> None:
        self._on_worker()
        while True:
            with self._lock:
                self._is_worker_idle = True
                while not self._queue and not self._arrived and not self._is_closed:
                    self._has_queued.wait()
                self._is_worker_idle = False
                if self._is_closed:
                    return
                if self._queue:
                    batch, expired = self._take_batch()
                    self._batches += 1
                    self._wake_loaders()
                    work = partial(self._run_batch, batch, expired)
                else:
                    work = partial(self._tokenize_calls, *self._take_arrived())
                if self._arrived:
                    self._has_arrived.notify()
            work()

    def _run_batch(self, batch: list[_Queued], expired: list[Submission]) -> None:
        outcomes: Sequence[Outcome] = []
        try:
            if batch:
                outcomes = self._run(batch)
        finally:
            with self._lock:
                finished_s = time.monotonic()
                for queued in batch:
                    self._engine.unpin(queued.lease)
                    queued.submission.held_by_threads -= 1
                    queued.submission.finished_s = finished_s
                for queued, outcome in zip(batch, outcomes, strict=False):  # unequal only where _run raised
                    queued.submission.settle(queued.place, outcome)
            self._tell(finished=[*expired, *(queued.submission for queued in batch)])

    # ---- taking, under the lock ------------------------------------------------------------------------------------

    def _wake_loaders(self) -> None:
        if self._waiting.since is not None:  # nearly always there is nothing for them
            self._has_waiting.notify_all()

    def _is_time_to_load(self) -> bool:
        since = self._waiting.since
        if since is None:
            return False
        has_other_work = self._queue.cost >= self._limits.budget_tokens
        is_patient = self._batches - since < LOAD_PATIENCE_BATCHES
        return not (has_other_work and is_patient and self._engine.is_crowded)

    def _take_arrived(self) -> tuple[list[Submission], list[Submission]]:
        """Calls to encode together, and calls that died on the way here."""
        now_s = time.monotonic()
        calls: list[Submission] = []
        dropped: list[Submission] = []
        characters = 0
        while self._arrived and (not calls or characters + self._arrived[0].characters <= MAX_ENCODE_CHARACTERS):
            call = self._arrived.popleft()
            if self._is_worth_running(call, now_s):
                call.held_by_threads += len(call.rows)
                characters += call.characters
                calls.append(call)
            else:
                dropped.append(call)
        return calls, dropped

    def _take_batch(self) -> tuple[list[_Queued], list[Submission]]:
        """Rows to run together, and calls whose deadline has passed."""
        now_s = time.monotonic()
        expired: list[Submission] = []

        def is_alive(queued: _Queued) -> bool:
            if self._is_worth_running(queued.submission, now_s):
                return True
            expired.append(queued.submission)
            self._metrics.cancelled_rows.inc()
            self._engine.unpin(queued.lease)
            return False

        batch = self._queue.take(self._limits.budget_tokens, is_alive)
        for queued in batch:
            call = queued.submission
            call.held_by_threads += 1
            call.started_s = now_s
            self._wait_for(call, rows=-1, tokens=-queued.row.n_tokens)
        return batch, expired

    def _is_worth_running(self, call: Submission, now_s: float) -> bool:
        if call.is_alive and now_s >= call.deadline_s:
            self._fail(call, DeadlineExceededError("the deadline passed while the call was queued"))
        return call.is_alive

    def _enqueue(self, call: Submission, rows: Sequence[Encoded | RowError] | EngineFailedError) -> None:
        call.encoded_s = call.started_s = call.finished_s = time.monotonic()
        if not call.is_alive:
            return
        if isinstance(rows, EngineFailedError):
            self._fail(call, rows)
            return
        good = [(index, row) for index, row in enumerate(rows) if not isinstance(row, RowError)]
        tokens = sum(row.n_tokens for _, row in good)
        if self._waiting_tokens and self._waiting_tokens + tokens > self._limits.queue_limit_tokens:
            overloaded = self._overloaded("tokens", self._waiting_tokens, self._limits.queue_limit_tokens)
            self._fail(call, self._counted(overloaded))
            return
        for index, row in enumerate(rows):
            if isinstance(row, RowError):
                call.settle(index, row)
        self._wait_for(call, rows=len(good) - len(rows), tokens=tokens)
        for index, row in good:
            queued = _Queued(call, index, row, call.leases[index].key or "")
            if self._engine.pin(queued.lease):
                self._queue.push(queued.lane, queued, row.n_tokens)
            else:
                self._metrics.misses.inc()
                self._waiting.add(queued.lane, queued, self._batches)

    def _after_load(self, waited: list[_Queued], lender: _Queued, error: ServerError | None) -> None:
        """Queue the rows that waited for an adapter, or give them the error; the lender's pin is there already."""
        is_lent = error is None
        for queued in waited:
            call = queued.submission
            if not call.is_alive:
                self._metrics.cancelled_rows.inc()
            elif error is not None:
                call.settle(queued.place, error)
                self._wait_for(call, rows=-1, tokens=-queued.row.n_tokens)
            elif queued is lender or self._engine.pin(queued.lease, again=True):
                is_lent = is_lent and queued is not lender
                self._queue.push(queued.lane, queued, queued.row.n_tokens)
            else:  # the same content, announced anew after a delete: another adapter to the engine
                self._waiting.add(queued.lane, queued, self._batches)
        if is_lent:  # its call was given up meanwhile
            self._engine.unpin(lender.lease)

    # ---- engine calls, outside the lock ----------------------------------------------------------------------------

    def _fetch(self, queued: _Queued) -> ServerError | None:
        """Bring the adapter of a row to the device, or say why it cannot be had."""
        began_s = time.perf_counter()
        try:
            self._engine.fetch(queued.lease)
        except Exception as error:  # a loader may raise anything, and it is this adapter's trouble alone
            logger.warning("adapter %.12s cannot be loaded: %s", queued.lane, type(error).__name__)
            return unavailable(error)
        self._metrics.load_s.observe(time.perf_counter() - began_s)
        return None

    def _encode(self, calls: list[Submission]) -> list[Sequence[Encoded | RowError] | EngineFailedError]:
        """Encode all rows at once; if that raises, each call's once more alone: one call's fault stays its own."""
        try:
            rows = self._encode_once(calls)
        except Exception:
            logger.exception("encoding %d calls failed; trying each alone", len(calls))
            return [self._encode_alone(call) for call in calls]
        encoded: list[Sequence[Encoded | RowError] | EngineFailedError] = []
        start = 0
        for call in calls:
            encoded.append(rows[start : start + len(call.rows)])
            start += len(call.rows)
        return encoded

    def _encode_alone(self, call: Submission) -> Sequence[Encoded | RowError] | EngineFailedError:
        try:
            return self._encode_once([call])
        except Exception:
            logger.exception("encoding a call of %d rows failed", len(call.rows))
            return EngineFailedError("these texts could not be tokenised")

    def _encode_once(self, calls: list[Submission]) -> Sequence[Encoded | RowError]:
        rows = [row for call in calls for row in call.rows]
        encoded = self._engine.encode(rows, [lease for call in calls for lease in call.leases])
        return _checked(encoded, len(rows), "encoded rows")

    def _run(self, batch: list[_Queued]) -> Sequence[Outcome]:
        """Run a batch; if that raises, each adapter's rows once more alone: one adapter's fault stays its own."""
        lanes = {queued.lane for queued in batch}
        self.tally.ran(lanes)
        self._metrics.rows.inc(len(batch))
        self._metrics.batch_rows.observe(len(batch))
        self._metrics.batch_adapters.observe(len(lanes))
        n_tokens = sum(queued.row.n_tokens for queued in batch)
        self._metrics.tokens.inc(n_tokens)
        self._metrics.batch_tokens.observe(n_tokens)
        self._metrics.batch_fill.observe(n_tokens / self._limits.budget_tokens)
        with self._span_of(batch, n_tokens, len(lanes)) as span:
            return self._run_apart(batch, lanes, span)

    def _span_of(self, batch: list[_Queued], n_tokens: int, n_adapters: int) -> "BatchSpan | NoSpan":
        if self._tracing is None:
            return NO_SPAN
        calls = [queued.submission for queued in batch]
        try:
            return self._tracing.batch(calls, rows=len(batch), tokens=n_tokens, adapters=n_adapters) or NO_SPAN
        except Exception:  # whatever telemetry does, rows are run
            logger.exception("a batch could not be traced")
            return NO_SPAN

    def _run_apart(self, batch: list[_Queued], lanes: set[str], span: "BatchSpan | NoSpan") -> Sequence[Outcome]:
        try:
            return self._run_once(batch)
        except Exception as error:
            span.fail(error)
            logger.exception("a batch of %d rows, %d adapters failed; trying each alone", len(batch), len(lanes))
        outcomes: dict[int, Outcome] = {}
        for lane in lanes:
            places = [place for place, queued in enumerate(batch) if queued.lane == lane]
            alone = self._run_alone([batch[place] for place in places], lane)
            outcomes.update(zip(places, alone, strict=True))
        return [outcomes[place] for place in range(len(batch))]

    def _run_alone(self, rows: list[_Queued], lane: str) -> Sequence[Outcome]:
        try:
            return self._run_once(rows)
        except Exception:
            logger.exception("%d rows of adapter %.12s failed alone", len(rows), lane)
            return [EngineFailedError("the engine failed on this adapter's rows")] * len(rows)

    def _run_once(self, rows: list[_Queued]) -> Sequence[Outcome]:
        with self._metrics.device_s.time():
            outcomes = self._engine.run([queued.row for queued in rows])
        return _checked(outcomes, len(rows), "results")

    # ---- bookkeeping -----------------------------------------------------------------------------------------------

    def _wait_for(self, call: Submission, *, rows: int, tokens: int) -> None:
        call.waiting_rows += rows
        call.waiting_tokens += tokens
        self._waiting_rows += rows
        self._waiting_tokens += tokens

    def _forget(self, call: Submission) -> None:
        """The call's rows no longer count as waiting, though they may still stand in the queue, dead."""
        self._wait_for(call, rows=-call.waiting_rows, tokens=-call.waiting_tokens)

    def _fail(self, call: Submission, error: ServerError) -> None:
        if not call.is_complete:
            call.failure = error
        self._forget(call)

    def _close(self, error: ServerError) -> None:
        """End the threads at their next look, and fail every call that is not complete."""
        with self._lock:
            self._is_closed = True
            self._refusal = self._refusal or error
            calls = list(self._live)
            for call in calls:
                self._fail(call, _again(error))
            self._arrived.clear()
            for queued in self._queue.drain():
                self._engine.unpin(queued.lease)
            self._waiting.clear()
            self._has_arrived.notify_all()
            self._has_queued.notify_all()
            self._has_waiting.notify_all()
        self._tell(finished=calls)

    def _tell(self, finished: Iterable[Submission]) -> None:
        """Have the event loop report those calls that have something to report: one wake-up, however many."""
        with self._lock:
            calls = [call for call in dict.fromkeys(finished) if call.is_complete or call.is_idle]
            self._live.difference_update(call for call in calls if call.is_idle)
        if calls and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._report, calls)

    def _report(self, calls: list[Submission]) -> None:
        for call in calls:
            call.report()
        with self._lock:
            self._note_if_done()

    def _note_if_done(self) -> None:
        if not self._live:
            self._all_done.set()

    def _counted(self, error: ServerError) -> ServerError:
        self._metrics.refused.labels(error.code).inc()
        return error

    def _overloaded(self, unit: str, waiting: int, limit: int) -> OverloadedError:
        return OverloadedError(
            f"{waiting} {unit} are waiting, and the server queues at most {limit}",
            hint=f"try again after the time in Retry-After; an operator can add replicas or raise queue_limit_{unit}",
            details={"waiting": waiting, "limit": limit, "unit": unit},
        )


def _checked(outcomes: Sequence[Any], expected: int, what: str) -> Sequence[Any]:
    if len(outcomes) != expected:
        raise EngineFailedError(f"the engine returned {len(outcomes)} {what} for {expected} rows")
    return outcomes


def unavailable(error: Exception) -> ServerError:
    """What a row is told whose adapter cannot be loaded."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, BankFullError):
        return NotReadyError(
            f"there is no room for the adapter: {error}",
            hint="an operator can raise ADAKRON_DEVICE_BUDGET_BYTES or pin fewer adapters",
            retry_after_s=5,
        )
    # Only errors of our own are known to hold no path and no content.
    reason = str(error)[:300] if isinstance(error, AdaKronError) else type(error).__name__
    return NotReadyError(
        f"the adapter cannot be loaded: {reason}",
        hint="activate another version, or upload this one again",
        retry_after_s=2,
    )


def _again(error: ServerError) -> ServerError:
    """A fresh copy: one exception object raised in many calls would collect all their tracebacks."""
    return type(error)(error.message, hint=error.hint)
