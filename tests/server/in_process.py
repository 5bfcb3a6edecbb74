"""A whole server in this process for clients of both kinds: the real applications, a stub engine, no sockets.

`first` are answers, or failures, that come before those of the server: one a request.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from server.admin import make_admin_app
from tests.server.fakes import House
from tests.server.stub_engine import config_of
from tests.server.test_app import Bench

T = TypeVar("T")
Answer = Callable[[httpx.Request], httpx.Response]


class InProcess(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Requests to ASGI applications, by the beginning of the path, on a loop in a thread of its own."""

    def __init__(self, apps: dict[str, Any]) -> None:
        self._transports = {prefix: httpx.ASGITransport(app) for prefix, app in apps.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.requests: list[httpx.Request] = []
        self.first: list[Answer] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the loop, to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if self.first:
            return self.first.pop(0)(request)
        return self.answer(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        if self.first:
            return self.first.pop(0)(request)
        return await self._answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The server's own."""
        return self.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        prefix = max((p for p in self._transports if request.url.path.startswith(p)), key=len)
        body = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        response = await self._transports[prefix].handle_async_request(body)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Server:
    """Both planes. The stub data plane has the adapters of `bench`, the admin plane those that were put."""

    def __init__(self, wire: InProcess, bench: Bench, house: House) -> None:
        self.wire, self.bench, self.house = wire, bench, house


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """sst2 and acme/topics take texts, stsb pairs; nothing is registered."""
    bench = Bench()
    bench.resolver.add("sst2")
    bench.resolver.add("acme/topics", config_of(("sport", "health"), "multi_label_classification"))
    bench.resolver.add("stsb", config_of(("similarity",), "regression", takes_pair=True))
    folder.mkdir(exist_ok=True)
    with House.open(folder) as house:
        wire = InProcess({"/": bench.app, "/v1/adapters": make_admin_app(house.registry)})
        try:
            wire.run(bench.service.start())
            yield Server(wire, bench, house)
            wire.run(bench.service.stop(grace_s=1))
        finally:
            wire.stop()
    assert bench.engine.n_held == 0


def status(code: int, **headers: str) -> Answer:
    """A bare answer, as a proxy gives it."""
    return lambda request: httpx.Response(code, headers={"content-type": "text/plain"} | headers)


def broken(error: type[httpx.TransportError]) -> Answer:
    """A failure on the way."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise error("planted")

    return answer
