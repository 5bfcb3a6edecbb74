"""Web pages of other origins: kept out, unless they were named."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from server.access.gate import Gate
from server.admin import make_admin_app
from tests.server.access.holders import Holders
from tests.server.fakes import House
from tests.server.test_app import Bench

OURS, THEIRS = "https://app.example.org", "https://evil.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with Bench(Gate(Holders()), [OURS]).client as opened:
        yield opened


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


async def test_named_origin_may_ask_and_read_and_sends_its_key_itself(client: httpx.AsyncClient) -> None:
    asked = await client.options("/v1/classify", headers={"origin": OURS, **PREFLIGHT})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, OURS)
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    refused = await client.post("/v1/classify", headers={"origin": OURS}, json={})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, OURS)
    assert "retry-after" in refused.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("origin", [THEIRS, "null", f"{OURS}.evil.example", f"{OURS}:8443", "http://app.example.org"])
async def test_other_origin_may_not(client: httpx.AsyncClient, origin: str) -> None:
    asked = await client.options("/v1/classify", headers={"origin": origin, **PREFLIGHT})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    assert "access-control-allow-origin" not in (await client.get("/healthz", headers={"origin": origin})).headers


async def test_nobody_may_unless_an_origin_was_named() -> None:
    async with Bench().client as client:
        asked = await client.options("/v1/classify", headers={"origin": OURS, **PREFLIGHT})
        assert (asked.status_code, asked.headers["allow"]) == (405, "POST")
        assert not [name for name in asked.headers if name.startswith("access-control")]


async def test_admin_routes_follow_the_same_list(house: House) -> None:
    for origins, status in (([OURS], 200), ([], 405)):
        transport = httpx.ASGITransport(make_admin_app(house.registry, cors=origins))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"origin": OURS, "access-control-request-method": "PUT"}
            assert (await client.options("/v1/adapters/x", headers=headers)).status_code == status
