"""A batcher over a stub engine, for tests of what it does with rows, calls and adapters."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from adakron import Row
from server.batcher import (
    Batcher,
    Limits,
)
from server.metrics import Metrics
from server.submission import Outcome, Submission
from tests.server.stub_engine import StubEngine, StubLease, config_of

LIMITS = Limits(budget_tokens=100, queue_limit_tokens=1000, queue_limit_rows=50)
WITHIN_S = 60.0


async def until(condition: Callable[[], bool], within_s: float = 2.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        await asyncio.sleep(0.001)


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


@dataclass
class Call:
    """A submission with the leases that are to be released after it, as the service would."""

    submission: Submission
    leases: list[StubLease]

    async def outcomes(self) -> Sequence[Outcome]:
        try:
            return await self.submission.outcomes()
        finally:
            self.submission.when_idle(self.release)

    def release(self) -> None:
        for lease in self.leases:
            lease.release()


class Bench:
    """A batcher over a stub engine, with short ways to put rows in and to hold the engine."""

    def __init__(self, limits: Limits = LIMITS, on_worker: Callable[[], None] = lambda: None) -> None:
        self.engine = StubEngine()
        for key in ("a", "b", "c"):
            self.engine.add(key, config_of())
        self.metrics = Metrics()
        self.batcher = Batcher(self.engine, limits, self.metrics, on_worker=on_worker)

    def submit(self, *rows: tuple[str, str], timeout_s: float = WITHIN_S) -> Call:
        """Rows are (key, text)."""
        leases = [self.engine.lease(key) for key, _ in rows]
        texts = [Row(text=text) for _, text in rows]
        try:
            return Call(self.batcher.submit(texts, leases, deadline_s=time.monotonic() + timeout_s), leases)
        except Exception:
            for lease in leases:
                lease.release()
            raise

    async def outcomes(self, *rows: tuple[str, str], timeout_s: float = WITHIN_S) -> Sequence[Outcome]:
        return await asyncio.wait_for(self.submit(*rows, timeout_s=timeout_s).outcomes(), WITHIN_S)

    async def hold(self) -> "asyncio.Task[Sequence[Outcome]]":
        """Close the gate, and wait until one row of adapter c stands before it."""
        self.engine.gate.clear()
        task = asyncio.create_task(self.outcomes(("c", "holding")))
        await until(self.engine.running.is_set)
        return task

    async def task(self, *rows: tuple[str, str], timeout_s: float = WITHIN_S) -> "asyncio.Task[Sequence[Outcome]]":
        """A call whose rows have all come through the tokenizer, none rejected, while the engine is held."""
        before = sample(self.metrics, "adakron_queue_tokens")
        task = asyncio.create_task(self.outcomes(*rows, timeout_s=timeout_s))
        await until(lambda: sample(self.metrics, "adakron_queue_tokens") > before)
        return task

    def texts_run(self) -> list[list[str]]:
        return [[row.text for row in batch] for batch in self.engine.batches]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    """Its batcher started and, afterwards, stopped with nothing left: no row held, pinned or counted."""
    bench.batcher.start()
    yield bench
    bench.engine.gate.set()
    bench.engine.encode_gate.set()
    bench.engine.load_gate.set()
    await bench.batcher.stop(grace_s=1)
    assert bench.engine.n_held == 0
    await until(lambda: bench.engine.n_pinned == 0)
    assert bench.engine.ran_without_pin == []
    assert bench.engine.ran_after_release == []
    assert sample(bench.metrics, "adakron_queue_tokens") == 0
    assert sample(bench.metrics, "adakron_queue_rows") == 0
