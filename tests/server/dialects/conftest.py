"""An application over the stub engine, with adapters of every kind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

import httpx
import pytest_asyncio

from server.app import make_app
from server.metrics import Metrics
from server.service import Service
from server.tally import Count
from tests.server.stub_adapters import INFO, StubAdapters, StubAdmin
from tests.server.stub_engine import StubEngine, StubResolver, config_of


class Bench:
    """`ready` is what the probe of readiness says."""

    def __init__(self) -> None:
        self.engine = StubEngine()
        self.resolver = StubResolver(self.engine)
        self.adapters = StubAdapters(self.resolver)
        self.admin = StubAdmin()
        self.ready = True
        self.service = Service(
            self.engine,
            self.resolver,
            budget_tokens=1000,
            queue_limit_tokens=10_000,
            queue_limit_rows=300,
            metrics=Metrics(),
        )
        self.app = make_app(
            self.service,
            info=lambda: INFO,
            is_ready=self._is_ready,
            collect_metrics=self._collect_metrics,
            admin_openapi=dict,
            adapters=self.adapters,
            admin=self.admin,
            collect_tallies=self._collect_tallies,
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """JSON, or bytes as they are."""
        if isinstance(body, bytes):
            return await self.client.post(path, content=body, headers=headers)
        return await self.client.post(path, json=body, headers=headers)

    async def native(self, adapter: str, inputs: Any, **more: Any) -> Any:
        """What POST /v1/classify answers: what every dialect has to agree with."""
        body = {"adapter": adapter, "inputs": inputs, "top_k": None, **more}
        return (await self.post("/v1/classify", body)).json()["results"]

    @contextlib.asynccontextmanager
    async def overloaded(self) -> AsyncIterator[None]:
        """While this lasts, the queue is full."""
        self.engine.gate.clear()
        body = {"adapter": "sst2", "inputs": ["x"] * 100}
        calls = [asyncio.create_task(self.post("/v1/classify", body))]
        while not self.engine.running.is_set():  # one batch stands in the engine, and no longer in the queue
            await asyncio.sleep(0.001)
        calls += [asyncio.create_task(self.post("/v1/classify", body)) for _ in range(8)]
        while not any(call.done() for call in calls):
            await asyncio.sleep(0.001)
        yield
        self.engine.gate.set()
        await asyncio.gather(*calls)

    async def _is_ready(self) -> bool:
        return self.ready

    async def _collect_metrics(self) -> bytes:
        return b""

    async def _collect_tallies(self, sha256s: Collection[str] | None) -> dict[str, Count]:
        return self.service.tally.counts(sha256s)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.resolver.add("sst2")
    bench.resolver.add("acme/spam", config_of(("ham", "spam", "a:b")))
    bench.resolver.add("acme/spam", config_of(("ham", "spam", "a:b")))
    bench.resolver.add("topics", config_of(("Sport", "Gesundheit ✓"), "multi_label_classification"))
    bench.resolver.add("stsb", config_of(("similarity",), "regression", takes_pair=True))
    await bench.service.start()
    async with bench.client:
        yield bench
    bench.engine.gate.set()
    await bench.service.stop(grace_s=1)
    assert bench.engine.n_held == 0
