"""`AsyncAdaKron`: the client for programs with an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx

from server.client import calls
from server.client.batches import Text, cut
from server.client.calls import Options
from server.client.connection import Connection
from server.client.exchange import Attempts, Flow, Request, method_signature
from server.client.replies import AdapterSummary, Outcome

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(call: Callable[P, Flow[T]]) -> "Callable[Concatenate[AsyncAdaKron, P], Awaitable[T]]":
    """The method that runs a call to its end, with its documentation and its arguments."""

    @wraps(call)
    async def method(self: "AsyncAdaKron", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(*args, **kwargs))

    method.__signature__ = method_signature(call)  # type: ignore[attr-defined]  # how `inspect` lets one say it
    return method


class AsyncAdaKron:
    """One server, from one event loop; the arguments are those of `AdaKron`. Every method raises ClientError."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection.of(url, api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.AsyncClient(
            base_url=self._connection.url,
            headers=self._connection.headers,
            timeout=self._connection.timeout,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return self._connection.shown("AsyncAdaKron")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    classify = _awaited(calls.classify)
    fan_out = _awaited(calls.fan_out)
    info = _awaited(calls.info)
    ready = _awaited(calls.ready)
    page = _awaited(calls.page)
    adapter = _awaited(calls.adapter)
    stats = _awaited(calls.stats)
    put = _awaited(calls.put)
    put_many = _awaited(calls.put_many)
    activate = _awaited(calls.activate)
    rollback = _awaited(calls.rollback)
    split = _awaited(calls.split)
    delete = _awaited(calls.delete)
    export = _awaited(calls.export)

    async def adapters(self, *, limit: int = 200) -> AsyncIterator[AdapterSummary]:
        """Every adapter in the order of names, `limit` in a request."""
        cursor: str | None = None
        while True:
            page = await self.page(limit, cursor)
            for adapter in page["adapters"]:
                yield adapter
            cursor = page["next"]
            if cursor is None:
                return

    async def classify_many(
        self, texts: Iterable[Text], adapter: str | None = None, *, concurrency: int = 4, **options: Unpack[Options]
    ) -> list[Outcome]:
        """As `AdaKron.classify_many`."""
        return [outcome async for outcome in self.stream(texts, adapter, concurrency=concurrency, **options)]

    async def stream(
        self, texts: Iterable[Text], adapter: str | None = None, *, concurrency: int = 4, **options: Unpack[Options]
    ) -> AsyncIterator[Outcome]:
        """As `AdaKron.stream`."""
        under_way: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            for batch in cut(texts, adapter):
                under_way.append(asyncio.create_task(self._run(calls.classify_together(batch, adapter, options))))
                if len(under_way) == concurrency:
                    for outcome in await under_way.popleft():
                        yield outcome
            while under_way:
                for outcome in await under_way.popleft():
                    yield outcome
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            request = next(flow)
            while True:
                request = flow.send(await self._exchange(request))
        except StopIteration as end:
            returned: T = end.value
            return returned
        finally:
            flow.close()

    async def _exchange(self, request: Request) -> httpx.Response:
        attempts = Attempts(request, attempts=self._connection.attempts, url=self._connection.shown_url)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.send(request.build(self._http))
            except httpx.TransportError as error:
                outcome = error
            pause_s = attempts.pause_s(outcome)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
            elif isinstance(outcome, httpx.Response):
                return outcome
