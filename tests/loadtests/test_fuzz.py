"""Both applications with a stub for an engine, behind a real HTTP server, and calls made up from their own document."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from loadtests.fuzz import fuzz, report
from server.access.gate import Gate
from server.admin import admin_openapi, make_admin_app
from tests.server.access.holders import Holders
from tests.server.fakes import House, tiny_adapter
from tests.server.test_app import Bench

CALLS = 200


@contextmanager
def served(folder: Path, keys: Holders | None = None, broken: Any = None) -> Iterator[str]:
    """A server in a thread; `broken` may answer first."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        with House.open(folder) as house:
            bench = Bench(Gate(keys), admin_openapi=admin_openapi)
            for name in ("sst2", "fuzz", "fuzz/one", "fuzz/two"):
                bench.resolver.add(name)
            for engine in house.engines:
                engine.before_add = lambda: None
            house.catalogue.add_version("sst2", _stored(house), 1)
            administration = make_admin_app(house.registry, Gate(keys))

            async def both(scope: Scope, receive: Receive, send: Send) -> None:
                if broken is not None and await broken(scope, receive, send):
                    return
                is_admin = scope["path"].startswith("/v1/adapters/") or scope["path"] == "/v1/adapters"
                await (administration if is_admin else bench.app)(scope, receive, send)

            server = uvicorn.Server(uvicorn.Config(both, lifespan="off", log_config=None, access_log=False))
            servers.append(server)
            await bench.service.start()
            await server.serve([listener])
            await bench.service.stop(grace_s=1)
            await bench.client.aclose()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not (servers and servers[0].started):
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(30)


def _stored(house: House) -> str:
    with house.blobs.stage() as staged:
        staged.write(tiny_adapter(1).to_bytes())
        staged.keep()
        return staged.sha256


@pytest.mark.slow
def test_made_up_calls_find_nothing_without_keys(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        outcome = fuzz(url, n=CALLS)
    assert outcome.failures == []
    assert outcome.calls == CALLS
    assert len(outcome.by_operation) > 10
    assert "**0 failures**" in report(outcome, keys=False)


@pytest.mark.slow
def test_made_up_calls_find_nothing_with_keys(tmp_path: Path) -> None:
    keys = Holders()
    key = keys.give("classify", "read", "admin")["authorization"].removeprefix("Bearer ")
    with served(tmp_path, keys) as url:
        outcome = fuzz(url, n=CALLS, key=key)
    assert outcome.failures == []
    assert outcome.by_status[200] > 5  # the key opens the doors: some of what is made up is even right


@pytest.mark.parametrize("fault", ["500", "undocumented status", "wrong shape", "wrong type"])
def test_planted_fault_is_found(tmp_path: Path, fault: str) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> bool:
        if scope["path"] != "/v1/classify":
            return False
        status = {"500": 500, "undocumented status": 418}.get(fault, 200)
        kind = b"text/plain" if fault == "wrong type" else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b'{"results": 1}'})
        return True

    with served(tmp_path, broken=broken) as url:
        outcome = fuzz(url, n=12)
    assert outcome.failed


def test_door_without_a_lock_is_found(tmp_path: Path) -> None:
    with served(tmp_path) as url:  # its document asks for a key, and nobody does
        outcome = fuzz(url, n=100, key="ad_anything")
    assert any("without a key" in failure for failure in outcome.failures)
