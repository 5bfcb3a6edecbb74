"""A server without keys: this machine's own programs and pages, and nobody else's."""

from collections.abc import AsyncIterator

import httpx
import pytest

from server.access.gate import Gate
from tests.server.access.holders import Holders
from tests.server.test_app import Bench

PAGE = "https://app.example.org"


@pytest.fixture
def keys() -> Holders:
    keys = Holders()
    keys.is_open = True
    return keys


@pytest.fixture
async def client(keys: Holders) -> AsyncIterator[httpx.AsyncClient]:
    bench = Bench(Gate(keys, origins=[PAGE]))
    bench.resolver.add("sst2")
    await bench.service.start()
    async with bench.client as opened:
        yield opened
    await bench.service.stop(grace_s=1)


async def call(client: httpx.AsyncClient, **headers: str) -> int:
    """What a page can send without being asked first: a POST without a content type."""
    body = b'{"adapter": "sst2", "inputs": "a"}'
    return (await client.post("/v1/classify", content=body, headers=headers)).status_code


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000"])
async def test_this_machine_is_answered(client: httpx.AsyncClient, host: str) -> None:
    assert await call(client, host=host) == 200
    assert await call(client, host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2"]
)
async def test_name_that_was_made_to_lead_here_is_not(client: httpx.AsyncClient, host: str) -> None:
    assert await call(client, host=host) == 403
    assert await call(client, host=host, origin=f"http://{host}") == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost:8000."])
async def test_page_of_another_origin_is_not(client: httpx.AsyncClient, origin: str) -> None:
    assert await call(client, host="localhost:8000", origin=origin) == 403


async def test_page_that_was_named_is(client: httpx.AsyncClient) -> None:
    assert await call(client, host="localhost:8000", origin=PAGE) == 200


async def test_with_keys_the_key_decides(client: httpx.AsyncClient, keys: Holders) -> None:
    keys.is_open = False
    key = keys.give("classify")
    assert await call(client, host="classify.example.org", origin="https://x.example", **key) == 200
