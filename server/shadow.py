"""Shadow versions: rows that were just answered run again through another version, to be compared and thrown away.

    an answered call -> the shadow's lease -> the same rows, behind everybody else's -> same, different, failed

Nobody waits for it: a call is answered before its shadow begins, and where too many shadows are under way the next one
is dropped and counted as such. Knows nothing of HTTP or of where adapters come from.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

from adakron import Result, Row
from server.classify_engine import Lease
from server.errors import ServerError
from server.metrics import Metrics
from server.submission import Outcome

MOST_UNDER_WAY = 32
RUN_WITHIN_S = 5.0
# Of regressions: what bfloat16 and other neighbours in the batch may change by themselves.
SAME_VALUE_TOLERANCE = 2e-2

Verdict: TypeAlias = Literal["same", "different", "failed", "dropped"]
VERDICTS: tuple[Verdict, ...] = ("same", "different", "failed", "dropped")

RunRows: TypeAlias = Callable[[Sequence[Row], Sequence[Lease], float], Awaitable[list[Outcome]]]


class Shadows:
    """All shadows of one process. Every method belongs to one event loop.

    lease  a lease on one version of a name; raises ServerError where it cannot be had
    run    rows through the engine within so many seconds; raises ServerError
    """

    def __init__(self, lease: Callable[[str, int], Lease], run: RunRows, metrics: Metrics) -> None:
        self._lease = lease
        self._run = run
        self._metrics = metrics
        self._verdicts: dict[tuple[str, int], Counter[str]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def verdicts(self, name: str, version: int) -> dict[str, int]:
        """How many rows of `name` were compared with `version` so far, by what came out."""
        counted = self._verdicts.get((name, version), Counter())
        return {verdict: counted[verdict] for verdict in VERDICTS}

    def compare(self, name: str, version: int, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> None:
        """Begin to run `rows` through that version. outcomes[i] is what rows[i] was answered with."""
        answered = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if isinstance(outcome, Result)]
        if not answered:
            return
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._count(name, version, ["dropped"] * len(answered))
            return
        task = asyncio.create_task(self._compare(name, version, answered))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _compare(self, name: str, version: int, answered: Sequence[tuple[Row, Result]]) -> None:
        try:
            lease = self._lease(name, version)
        except ServerError:
            self._count(name, version, ["failed"] * len(answered))
            return
        try:
            rows = [row for row, _ in answered]
            outcomes = await self._run(rows, [lease] * len(rows), RUN_WITHIN_S)
        except ServerError as error:
            verdict: Verdict = "dropped" if error.status == 429 else "failed"
            self._count(name, version, [verdict] * len(answered))
            return
        finally:
            lease.release()
        self._count(name, version, [verdict_of(answer, o) for (_, answer), o in zip(answered, outcomes, strict=True)])

    def _count(self, name: str, version: int, verdicts: Sequence[Verdict]) -> None:
        self._verdicts.setdefault((name, version), Counter()).update(verdicts)
        for verdict in verdicts:
            self._metrics.shadow_rows.labels(verdict).inc()


def verdict_of(answer: Result, shadow: Outcome) -> Verdict:
    """Whether the shadow says what was answered: the same label, the same set of labels, or nearly the same value."""
    if not isinstance(shadow, Result):
        return "failed"
    if answer.problem_type != shadow.problem_type:
        return "different"
    if answer.problem_type == "regression":
        tolerance = SAME_VALUE_TOLERANCE * max(1.0, abs(answer.value))
        return "same" if abs(answer.value - shadow.value) <= tolerance else "different"
    if answer.problem_type == "multi_label_classification":
        return "same" if set(answer.labels) == set(shadow.labels) else "different"
    return "same" if answer.label == shadow.label else "different"
