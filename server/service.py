"""Classification from a checked request to an answer: names resolved and leased, rows batched, outcomes put in order.

    resolve every name once -> rows -> Submission -> outcomes -> answer;  leases released whatever happens

Knows adapters by name and version. Knows nothing of HTTP, JSON text, Ray, or where adapters are stored.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adakron import Result, Row
from server.access.caller import current_caller
from server.answers import (
    AdapterAnswer,
    Answer,
    Identity,
    ItemsAnswer,
    ManyAdaptersAnswer,
    OneAdapterAnswer,
    Place,
    RowAnswer,
    count_failed,
    item_answer,
    row_answer,
    row_error,
)
from server.batcher import Batcher, Limits
from server.classify_engine import ClassifyEngine, Lease
from server.errors import DeadlineExceededError, InputError, InvalidRequestError, ServerError
from server.metrics import Metrics
from server.names import Reference, parse_reference
from server.schemas import (
    MAX_ROWS,
    ClassifyRequest,
    ItemsRequest,
    OneAdapterRequest,
    TextInput,
)
from server.shadow import Shadows
from server.submission import Outcome, Stages, Submission
from server.telemetry.no_span import NO_SPAN
from server.telemetry.notes import current_notes
from server.telemetry.served import ServedCounts

if TYPE_CHECKING:  # installed only where traces are wanted
    from server.telemetry.tracing import Tracing

MAX_TIMEOUT_S = 20.0
DEFAULT_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name, as it was when the request came: this version, these bytes, held by `lease` until that is released.

    shadow  the version that the answer is to be compared with, or None
    """

    name: str
    version: int
    sha256: str
    lease: Lease
    shadow: int | None = None


class Resolver(Protocol):
    """From names to leased versions. `generation` is that of the catalogue table now served."""

    @property
    def generation(self) -> int: ...

    async def resolve(self, reference: Reference, min_generation: int | None, route_key: str | None = None) -> Resolved:
        """Lease one version: the pinned one, or that which the name answers this route key with. The caller releases.

        Raises AdapterNotFoundError and VersionNotFoundError (404), NotReadyError (503) behind `min_generation`.
        """
        ...

    def lease(self, name: str, version: int) -> Lease:
        """A lease on one version, for a shadow. Raises ServerError where it cannot be had."""
        ...

    async def read(self, leases: Sequence[Lease]) -> list[ServerError | None]:
        """Get ready to encode rows for these adapters; for each, why that is not possible, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Classified:
    """An answer with what the reply's headers tell of it.

    adapter   the only adapter that took part, or None where there were several
    stages    where the time went
    outcomes  what the engine made of each row, in the order of `answer`, for those who answer in another form
    """

    answer: Answer
    adapter: Identity | None
    stages: Stages
    outcomes: Sequence[Outcome]


class Service:
    """The data plane of one process. All methods belong to one event loop.

    queue_limit_tokens, queue_limit_rows   what may wait before calls are refused with 429; see `batcher.Limits`
    served   where what is answered is counted by version; shadows and probes are not
    tracing  what makes spans, where traces are wanted
    on_worker  what the thread that runs batches does before the first
    """

    def __init__(
        self,
        engine: ClassifyEngine,
        resolver: Resolver,
        *,
        budget_tokens: int,
        queue_limit_tokens: int,
        queue_limit_rows: int = 4096,
        metrics: Metrics,
        served: ServedCounts | None = None,
        tracing: "Tracing | None" = None,
        on_worker: Callable[[], None] = lambda: None,
    ) -> None:
        self.metrics = metrics
        self._tracing = tracing
        self.served = served or ServedCounts()
        self._resolver = resolver
        limits = Limits(budget_tokens, queue_limit_tokens, queue_limit_rows)
        self._batcher = Batcher(engine, limits, metrics, tracing, on_worker)
        self.tally = self._batcher.tally
        self.shadows = Shadows(resolver.lease, self._run_shadow, metrics)

    async def start(self) -> None:
        """Start the threads; from here on calls are taken."""
        self._batcher.start()

    async def stop(self, *, grace_s: float = DEFAULT_GRACE_S) -> None:
        """Refuse new calls at once, finish those inside within `grace_s`, then fail what is left with 503."""
        await self.shadows.stop()
        await self._batcher.stop(grace_s=grace_s)

    def ready(self) -> bool:
        """Whether calls are taken: started, not stopping, both threads alive. False for good once a thread died."""
        return self._batcher.is_running

    async def classify(
        self, request: ClassifyRequest, *, timeout_s: float = MAX_TIMEOUT_S, route_key: str | None = None
    ) -> Classified:
        """Answer a request within `timeout_s` seconds. Calls with one `route_key` stay on one side of a split.

        A row that fails is an error in its place. Raises the first row's error where all failed (422 or 503),
        InvalidRequestError (422), AdapterNotFoundError and VersionNotFoundError (404), OverloadedError and
        RateLimitedError (429), NotReadyError (503), DeadlineExceededError (504).
        """
        plan = _plan(request)
        await current_caller().charge(len(plan.rows))
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        adapters: dict[str, Resolved] = {}
        submission: Submission | None = None
        limit = asyncio.timeout(timeout_s)

        def release() -> None:
            for adapter in adapters.values():
                adapter.lease.release()

        try:
            async with limit:
                with NO_SPAN if self._tracing is None else self._tracing.span("adakron.resolve"):
                    for reference, param in plan.references.items():
                        adapters[reference] = await self._resolve(reference, param, request.min_generation, route_key)
                    unable = await self._read(adapters)
                if request.abstain_below is not None:
                    unable |= _without_labels(adapters)
                places = [n for n, reference in enumerate(plan.adapter_of_row) if reference not in unable]
                if not places:
                    raise next(iter(unable.values()))
                rows = [plan.rows[place] for place in places]
                leases = [adapters[plan.adapter_of_row[place]].lease for place in places]
                submission = self._batcher.submit(rows, leases, deadline_s=deadline_s)
                outcomes = await submission.outcomes()
                if unable:
                    answered = dict(zip(places, outcomes, strict=True))
                    outcomes = [
                        answered[n] if n in answered else unable[reference]
                        for n, reference in enumerate(plan.adapter_of_row)
                    ]
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._count(plan, adapters, began_s)
            raise DeadlineExceededError(
                f"not answered within {timeout_s:g} s", hint="send fewer texts, or try again when less is going on"
            ) from error
        except ServerError:
            self._count(plan, adapters, began_s)
            raise
        finally:
            _release_when_idle(release, submission)
        stages = submission.stages()
        for histogram, seconds in zip(self.metrics.call_stages_s, stages, strict=True):
            histogram.observe(seconds)
        self._count(plan, adapters, began_s, outcomes, stages)
        self._shadow(plan, adapters, outcomes)
        return _classified(plan, request, adapters, outcomes, stages)

    async def run_rows(self, rows: Sequence[Row], leases: Sequence[Lease], *, timeout_s: float) -> list[Outcome]:
        """Rows through the same queue and threads as requests, for probes and shadows. Releases no lease.

        All leases must be read.

        Returns once no thread holds a row. Raises OverloadedError, NotReadyError, EngineFailedError,
        DeadlineExceededError.
        """
        submission = self._batcher.submit(rows, leases, deadline_s=time.monotonic() + timeout_s)
        idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                return await submission.outcomes()
        except TimeoutError as error:
            raise DeadlineExceededError(f"not answered within {timeout_s:g} s") from error
        finally:
            submission.when_idle(idle.set)
            await idle.wait()

    async def _run_shadow(self, rows: Sequence[Row], leases: Sequence[Lease], timeout_s: float) -> list[Outcome]:
        for error in await self._resolver.read(list(dict.fromkeys(leases))):
            if error is not None:
                raise error
        return await self.run_rows(rows, leases, timeout_s=timeout_s)

    async def _read(self, adapters: Mapping[str, Resolved]) -> dict[str, ServerError]:
        """Those adapters that cannot be had, and why: their rows alone fail."""
        unread = [reference for reference, adapter in adapters.items() if not adapter.lease.is_read]
        if not unread:
            return {}
        errors = await self._resolver.read([adapters[reference].lease for reference in unread])
        return {reference: error for reference, error in zip(unread, errors, strict=True) if error is not None}

    def _shadow(self, plan: "_Plan", adapters: dict[str, Resolved], outcomes: Sequence[Outcome]) -> None:
        for reference, adapter in adapters.items():
            if adapter.shadow is not None:
                mine = [place for place, named in enumerate(plan.adapter_of_row) if named == reference]
                rows, answers = [plan.rows[place] for place in mine], [outcomes[place] for place in mine]
                self.shadows.compare(adapter.name, adapter.shadow, rows, answers)

    def _count(
        self,
        plan: "_Plan",
        adapters: dict[str, Resolved],
        began_s: float,
        outcomes: Sequence[Outcome] = (),
        stages: Stages | None = None,
    ) -> None:
        """One call of each adapter. Without outcomes, all its rows failed with the call."""
        seconds = time.monotonic() - began_s
        failed = Counter(plan.adapter_of_row)
        good: dict[str, list[Result]] = {reference: [] for reference in adapters}
        for named, outcome in zip(plan.adapter_of_row, outcomes, strict=False):
            if isinstance(outcome, Result):
                good[named].append(outcome)
        notes = current_notes()
        if notes is not None:
            notes.rows = len(plan.rows)
            notes.failed_rows = len(plan.rows) - sum(map(len, good.values()))
            notes.stages_s = stages
            notes.adapters = len(adapters)
            if len(adapters) == 1:
                [only] = adapters.values()
                notes.adapter = f"{only.name}@{only.version}"
        for reference, adapter in adapters.items():
            results = good[reference]
            n_failed = failed[reference] - len(results)
            self.tally.answered(adapter.sha256, len(results), n_failed, stages)
            self.served.note(adapter.name, adapter.version, results, n_failed, seconds)
            self.metrics.adapters.figures_of(adapter.name).count(len(results), n_failed, seconds)

    async def _resolve(self, reference: str, param: str, min_generation: int | None, route_key: str | None) -> Resolved:
        parsed = parse_reference(reference, param=param)
        try:
            return await self._resolver.resolve(parsed, min_generation, route_key)
        except ServerError as error:
            error.param = error.param or param
            raise


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request unrolled: its rows in order, each with its adapter and the place it stood in the request."""

    references: dict[str, str]  # every different reference, and the first place that named it
    rows: list[Row]
    adapter_of_row: list[str]
    place_of_row: list[Place]


def _plan(request: ClassifyRequest) -> _Plan:
    if isinstance(request, ItemsRequest):
        rows = [_row(item, request.truncate) for item in request.items]
        named = [item.adapter for item in request.items]
        references: dict[str, str] = {}
        for index, reference in enumerate(named):
            references.setdefault(reference, f"items.{index}.adapter")
        return _Plan(references, rows, named, [Place(f"items.{index}") for index in range(len(rows))])
    if isinstance(request, OneAdapterRequest):
        references = {request.adapter: "adapter"}
        adapters = [request.adapter]
    else:
        references = {}
        for index, reference in enumerate(request.adapters):
            references.setdefault(reference, f"adapters.{index}")
        adapters = request.adapters
    if isinstance(request.inputs, str):
        inputs, places = [_row(request.inputs, request.truncate)], [Place("inputs", is_string=True)]
    else:
        inputs = [_row(text, request.truncate) for text in request.inputs]
        places = [Place(f"inputs.{index}", isinstance(text, str)) for index, text in enumerate(request.inputs)]
    if len(inputs) * len(adapters) > MAX_ROWS:
        raise InvalidRequestError(
            f"{len(inputs)} inputs through {len(adapters)} adapters are {len(inputs) * len(adapters)} rows",
            param="inputs",
            hint=f"a call has at most {MAX_ROWS} rows",
        )
    # Adapter by adapter, as the answer is ordered.
    return _Plan(
        references,
        inputs * len(adapters),
        [reference for reference in adapters for _ in inputs],
        places * len(adapters),
    )


def _without_labels(adapters: Mapping[str, Resolved]) -> dict[str, ServerError]:
    """Those adapters that give a value and so have no label to withhold, each with its refusal."""
    return {
        reference: InputError(
            f"{adapter.name} is a regression: it gives a value, and has no score to abstain by",
            code="NOTHING_TO_ABSTAIN_FROM",
            param="abstain_below",
            hint="leave abstain_below out, or ask this adapter in a call of its own",
        )
        for reference, adapter in adapters.items()
        if adapter.lease.config is not None and adapter.lease.config.problem_type == "regression"
    }


def _row(text: str | TextInput, truncate: bool) -> Row:
    if isinstance(text, str):
        return Row(text=text, truncate=truncate)
    return Row(text=text.text, text_pair=text.text_pair, truncate=truncate)


def _release_when_idle(release: Callable[[], None], submission: Submission | None) -> None:
    # A thread may still hold rows of a call that was cancelled or timed out; their slot must stay theirs until then.
    if submission is None:
        release()
    else:
        submission.when_idle(release)


def _classified(
    plan: _Plan,
    request: ClassifyRequest,
    adapters: dict[str, Resolved],
    outcomes: list[Outcome],
    stages: Stages,
) -> Classified:
    failed = count_failed(outcomes)
    if failed == len(outcomes) and not isinstance(outcomes[0], Result):
        raise row_error(outcomes[0], plan.place_of_row[0])
    rows = [
        row_answer(outcome, place, top_k=request.top_k, abstain_below=request.abstain_below)
        for outcome, place in zip(outcomes, plan.place_of_row, strict=True)
    ]
    identities: dict[str, Identity] = {
        reference: {"adapter": adapter.name, "version": adapter.version, "sha256": adapter.sha256}
        for reference, adapter in adapters.items()
    }
    answer = _answer(request, rows, [identities[reference] for reference in plan.adapter_of_row])
    if failed:
        answer["errors"] = failed
    only = next(iter(identities.values())) if len(identities) == 1 else None
    return Classified(answer, only, stages, outcomes)


def _answer(request: ClassifyRequest, rows: list[RowAnswer], identities: list[Identity]) -> Answer:
    """The answer in the request's form; identities[i] is the adapter that made rows[i]."""
    if isinstance(request, ItemsRequest):
        items = [item_answer(identity, row) for identity, row in zip(identities, rows, strict=True)]
        return ItemsAnswer(results=items)
    if isinstance(request, OneAdapterRequest):
        only = identities[0]
        return OneAdapterAnswer(adapter=only["adapter"], version=only["version"], sha256=only["sha256"], results=rows)
    step = len(rows) // len(request.adapters)
    starts = range(0, len(rows), step)
    return ManyAdaptersAnswer(
        results=[AdapterAnswer(**identities[start], results=rows[start : start + step]) for start in starts]
    )
