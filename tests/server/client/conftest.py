"""One server in process, and both clients behind one handle: what a call does must not depend on the transport."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from server.client import AdaKron, AsyncAdaKron
from tests.server.in_process import Server


class Caller:
    """call("classify", "a text", "sst2") by one of the clients; streams and lists become lists."""

    def __init__(self, kind: str, server: Server) -> None:
        self.kind, self.server = kind, server

    def __call__(self, method: str, *words: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        options_of_client = {"url": "http://test", "transport": self.server.wire, **(client or {})}
        if self.kind == "awaited":
            return self.server.wire.run(self._awaited(method, words, options, options_of_client))
        with AdaKron(**options_of_client) as blocking:
            found = getattr(blocking, method)(*words, **options)
            return list(found) if isinstance(found, Iterator) else found

    async def _awaited(self, method: str, words: Any, options: Any, options_of_client: Any) -> Any:
        async with AsyncAdaKron(**options_of_client) as client:
            found = getattr(client, method)(*words, **options)
            if isinstance(found, AsyncIterator):
                return [item async for item in found]
            return await found


@pytest.fixture(params=["blocking", "awaited"])
def call(request: pytest.FixtureRequest, server: Server) -> Caller:
    return Caller(request.param, server)
