"""Shadows: compared and counted, never waited for, never returned; every lease comes back."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from adakron import Result, Row, RowError
from server import shadow
from server.classify_engine import Lease
from server.errors import NotReadyError, OverloadedError, ServerError, VersionNotFoundError
from server.metrics import Metrics
from server.shadow import Shadows, verdict_of
from server.submission import Outcome
from tests.server.stub_engine import StubEngine, StubLease, StubResolver, config_of


def result(*logits: float, **options: object) -> Result:
    values = np.array(logits, dtype=np.float32)
    config = config_of(("a", "b", "c"), **options)  # type: ignore[arg-type]
    scores = 1 / (1 + np.exp(-values)) if config.problem_type != "regression" else np.empty(0, np.float32)
    return Result("key", values, scores, 3, False, config)


def value(number: float) -> Result:
    config = config_of(("value",), "regression")
    return Result("key", np.array([number], np.float32), np.empty(0, np.float32), 3, False, config)


MULTI = {"problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("answer", "other", "verdict"),
    [
        (result(1, 2, 0), result(-5, 9, 1), "same"),
        (result(1, 2, 0), result(3, 2, 0), "different"),
        (result(1, 2, -1, **MULTI), result(3, 1, -4, **MULTI), "same"),
        (result(1, 2, -1, **MULTI), result(1, -2, -1, **MULTI), "different"),
        (value(2.0), value(2.01), "same"),
        (value(2.0), value(2.1), "different"),
        (value(2.0), result(1, 2, 0), "different"),
        (result(1, 2, 0), RowError("ADAPTER_NUMERIC_ERROR", "NaN"), "failed"),
    ],
)
def test_verdict(answer: Result, other: Outcome, verdict: str) -> None:
    assert verdict_of(answer, other) == verdict


class Bench:
    def __init__(self) -> None:
        self.engine = StubEngine()
        self.resolver = StubResolver(self.engine)
        self.resolver.add("x")
        self.resolver.add("x")
        self.metrics = Metrics()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: ServerError | None = None
        self.shadows = Shadows(self.resolver.lease, self.run, self.metrics)

    async def run(self, rows: Sequence[Row], leases: Sequence[Lease], timeout_s: float) -> list[Outcome]:
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        assert all(isinstance(lease, StubLease) and lease.is_held for lease in leases)
        return [result(1, 2, 0) for _ in rows]

    async def settled(self) -> dict[str, int]:
        await asyncio.gather(*self.shadows._under_way, return_exceptions=True)
        return {verdict: count for verdict, count in self.shadows.verdicts("x", 2).items() if count}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.shadows.stop()
    assert made.engine.n_held == 0


ROWS = [Row(text="one"), Row(text="two"), Row(text="three")]


async def test_answered_rows_are_compared_and_failed_ones_are_not(bench: Bench) -> None:
    bench.shadows.compare("x", 2, ROWS, [result(0, 1, 0), result(1, 0, 0), RowError("BLANK_TEXT", "blank")])
    assert await bench.settled() == {"same": 1, "different": 1}
    text = bench.metrics.render().decode()
    assert 'adakron_shadow_rows_total{verdict="same"} 1.0' in text


async def test_verdicts_of_another_version_are_its_own(bench: Bench) -> None:
    bench.shadows.compare("x", 2, ROWS[:1], [result(0, 1, 0)])
    await bench.settled()
    assert set(bench.shadows.verdicts("x", 1).values()) == {0}


@pytest.mark.parametrize(
    ("error", "verdict"), [(NotReadyError("stopping"), "failed"), (OverloadedError("full"), "dropped")]
)
async def test_shadow_that_does_not_run_is_counted_and_gives_its_lease_back(
    bench: Bench, error: ServerError, verdict: str
) -> None:
    bench.error = error
    bench.shadows.compare("x", 2, ROWS[:2], [result(0, 1, 0)] * 2)
    assert await bench.settled() == {verdict: 2}
    assert bench.engine.n_held == 0


async def test_shadow_that_is_gone_is_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str, version: int) -> Lease:
        raise VersionNotFoundError("gone")

    monkeypatch.setattr(bench.shadows, "_lease", gone)
    bench.shadows.compare("x", 2, ROWS[:1], [result(0, 1, 0)])
    assert await bench.settled() == {"failed": 1}


async def test_shadows_beyond_the_bound_are_dropped(bench: Bench) -> None:
    bench.go_on.clear()
    for _ in range(shadow.MOST_UNDER_WAY + 3):
        bench.shadows.compare("x", 2, ROWS[:1], [result(0, 1, 0)])
    await asyncio.sleep(0)
    assert bench.engine.n_held == shadow.MOST_UNDER_WAY
    bench.go_on.set()
    assert await bench.settled() == {"same": shadow.MOST_UNDER_WAY, "dropped": 3}


async def test_stop_gives_every_lease_back(bench: Bench) -> None:
    bench.go_on.clear()
    bench.shadows.compare("x", 2, ROWS[:1], [result(0, 1, 0)])
    await asyncio.sleep(0)
    assert bench.engine.n_held == 1
    await bench.shadows.stop()
    assert bench.engine.n_held == 0
