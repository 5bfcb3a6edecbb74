"""`AdaKron`: the client for programs that wait."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def _blocking(call: Callable[P, Flow[T]]) -> "Callable[Concatenate[AdaKron, P], T]":
    """The method that runs a call to its end, with its documentation and its arguments."""

    @wraps(call)
    def method(self: "AdaKron", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(*args, **kwargs))

    method.__signature__ = method_signature(call)  # type: ignore[attr-defined]  # how `inspect` lets one say it
    return method


class AdaKron:
    """One server. Any thread; close it, or use it as a context manager.

    url        where it is (ADAKRON_URL, else http://127.0.0.1:8000)
    api_key    its key, where it asks for one (ADAKRON_API_KEY)
    timeout_s  how long one try may take
    attempts   how often a request that fails on its way, or that the server has no time for, is sent
    transport  another way to send, for tests

    A retry waits as long as Retry-After asks, or half a second and ever longer; every change is done once, however
    often it is sent. Every method raises ClientError.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection.of(url, api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.Client(
            base_url=self._connection.url,
            headers=self._connection.headers,
            timeout=self._connection.timeout,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._connection.shown("AdaKron")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    classify = _blocking(calls.classify)
    fan_out = _blocking(calls.fan_out)
    info = _blocking(calls.info)
    ready = _blocking(calls.ready)
    page = _blocking(calls.page)
    adapter = _blocking(calls.adapter)
    stats = _blocking(calls.stats)
    put = _blocking(calls.put)
    put_many = _blocking(calls.put_many)
    activate = _blocking(calls.activate)
    rollback = _blocking(calls.rollback)
    split = _blocking(calls.split)
    delete = _blocking(calls.delete)
    export = _blocking(calls.export)

    def adapters(self, *, limit: int = 200) -> Iterator[AdapterSummary]:
        """Every adapter in the order of names, `limit` in a request."""
        cursor: str | None = None
        while True:
            page = self.page(limit, cursor)
            yield from page["adapters"]
            cursor = page["next"]
            if cursor is None:
                return

    def classify_many(
        self, texts: Iterable[Text], adapter: str | None = None, *, concurrency: int = 4, **options: Unpack[Options]
    ) -> list[Outcome]:
        """Any number of texts; an outcome for each, in order: a Result, or a RowFailure in its place.

        texts        strings, pairs of strings, or `Item`s that may name their own adapter
        concurrency  requests under way at once

        Raises ClientError where a request fails as a whole, ValueError where a text has no adapter.
        """
        return list(self.stream(texts, adapter, concurrency=concurrency, **options))

    def stream(
        self, texts: Iterable[Text], adapter: str | None = None, *, concurrency: int = 4, **options: Unpack[Options]
    ) -> Iterator[Outcome]:
        """As `classify_many`, reading texts and giving outcomes as they come: for more than memory holds."""
        under_way: deque[Future[list[Outcome]]] = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="adakron-client")
        try:
            for batch in cut(texts, adapter):
                under_way.append(pool.submit(self._run, calls.classify_together(batch, adapter, options)))
                if len(under_way) > concurrency:  # one more than run, so that none waits for whoever reads this
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, flow: Flow[T]) -> T:
        try:
            request = next(flow)
            while True:
                request = flow.send(self._exchange(request))
        except StopIteration as end:
            returned: T = end.value
            return returned
        finally:
            flow.close()

    def _exchange(self, request: Request) -> httpx.Response:
        attempts = Attempts(request, attempts=self._connection.attempts, url=self._connection.shown_url)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.send(request.build(self._http))
            except httpx.TransportError as error:
                outcome = error
            pause_s = attempts.pause_s(outcome)
            if pause_s is not None:
                time.sleep(pause_s)
            elif isinstance(outcome, httpx.Response):
                return outcome
