"""The native route without the router is the native route: the same gate, the same errors, the same counters."""

from collections.abc import Callable

import httpx
import pytest

from server.access.gate import Gate
from server.errors import ForbiddenError
from tests.server.test_app import Bench

GOOD = {"adapter": "sst2", "inputs": "a text"}


def closed_router(bench: Bench) -> Bench:
    async def closed(*_: object) -> None:
        raise AssertionError("the router was asked")

    bench.app.router.app = closed  # type: ignore[method-assign]
    bench.app.router.__class__ = type("Closed", (type(bench.app.router),), {"__call__": closed})
    return bench


async def ask(bench: Bench, send: Callable[[httpx.AsyncClient], object]) -> httpx.Response:
    bench.resolver.add("sst2")
    await bench.service.start()
    try:
        async with bench.client as client:
            reply = await send(client)  # type: ignore[misc]
            assert isinstance(reply, httpx.Response)
            return reply
    finally:
        await bench.service.stop(grace_s=1)


async def test_the_router_is_not_asked_for_the_native_route() -> None:
    reply = await ask(closed_router(Bench()), lambda client: client.post("/v1/classify", json=GOOD))
    assert reply.status_code == 200
    assert reply.json()["adapter"] == "sst2"


async def test_it_is_counted_under_its_own_name() -> None:
    bench = Bench()
    await ask(bench, lambda client: client.post("/v1/classify", json=GOOD))
    labels = {"route": "/v1/classify", "code": "200"}
    assert bench.service.metrics.registry.get_sample_value("adakron_requests_total", labels) == 1


async def test_the_gate_stands_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Gate, *_: object) -> None:
        raise ForbiddenError("planted")

    monkeypatch.setattr(Gate, "admit", refuse)
    reply = await ask(Bench(), lambda client: client.post("/v1/classify", json=GOOD))
    assert reply.status_code == 403
    assert reply.json()["error"]["message"] == "planted"


async def test_another_method_is_refused_as_before() -> None:
    reply = await ask(Bench(), lambda client: client.get("/v1/classify"))
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"


async def test_what_nobody_foresaw_is_500_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(bench.service, "classify", fail)
    reply = await ask(bench, lambda client: client.post("/v1/classify", json=GOOD))
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "INTERNAL"
    assert "secret" not in reply.text
