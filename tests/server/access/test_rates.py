"""What one key may have classified: counted in rows, told in every reply, shared out or counted in Redis."""

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import ConnectionPool

from server.access.caller import Caller, acting_for, current_caller
from server.access.gate import Gate
from server.access.keys import Key
from server.access.rates import RateLimits
from server.errors import InvalidRequestError, RateLimitedError
from tests.server.access.holders import Holders
from tests.server.test_app import Bench

KEY = Key("k1", "0" * 64, frozenset({"classify"}), None, 1)


async def charge(limits: RateLimits, rows: int, key: Key = KEY) -> dict[str, str]:
    """The header fields of the reply."""
    headers: dict[str, str] = {}
    meter = limits.meter_of(key, headers)
    assert meter is not None
    try:
        await meter.charge(rows)
    except RateLimitedError as error:
        headers["refused"] = str(error.retry_after_s)
    return headers


async def test_rows_are_counted_and_what_is_left_is_told() -> None:
    limits = RateLimits(100)
    first = await charge(limits, 60)
    assert first["ratelimit-policy"] == '"rows";q=100;w=60'
    assert first["ratelimit"].startswith('"rows";r=40;t=')
    assert 1 <= int((await charge(limits, 41))["refused"]) <= 80
    assert (await charge(limits, 40))["ratelimit"].startswith('"rows";r=0;t=')
    assert "refused" in await charge(limits, 1)


async def test_each_key_has_its_own_count_and_may_have_its_own_limit() -> None:
    limits = RateLimits(10)
    assert "refused" not in await charge(limits, 10)
    assert "refused" not in await charge(limits, 10, replace(KEY, id="k2"))
    assert "refused" not in await charge(limits, 50, replace(KEY, id="k3", rows_per_minute=50))


async def test_without_a_limit_nothing_is_counted() -> None:
    assert RateLimits(None).meter_of(KEY, {}) is None
    await Caller().charge(10**9)


async def test_limit_is_divided_by_the_replicas_that_share_it() -> None:
    limits = RateLimits(100)
    limits.shares = 4
    assert (await charge(limits, 25))["ratelimit-policy"] == '"rows";q=25;w=60'
    assert "refused" in await charge(limits, 1)
    assert limits.describe() == {"rows_per_minute": 100, "counted": "in memory, divided by 4 live replicas"}


async def test_more_rows_at_once_than_a_minute_has_is_no_matter_of_waiting() -> None:
    with pytest.raises(InvalidRequestError, match="11 rows in one call, and this key may have 10"):
        await charge(RateLimits(10), 11)


async def test_wrong_keys_are_counted_by_address() -> None:
    limits = RateLimits(None)
    for _ in range(30):
        await limits.count_wrong_key("10.0.0.1")
    with pytest.raises(RateLimitedError, match="wrong keys"):
        await limits.count_wrong_key("10.0.0.1")
    await limits.count_wrong_key("10.0.0.2")


# ---- Redis ---------------------------------------------------------------------------------------------------------


async def test_replicas_count_together_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()  # answers as Redis does, its Lua too
    monkeypatch.setattr(
        ConnectionPool, "from_url", lambda url, **options: FakeAsyncRedis(server=server).connection_pool
    )
    one, two = (RateLimits(100, redis_url="redis://host:6379/0", shares=2) for _ in range(2))
    assert "refused" not in await charge(one, 60)
    assert (await charge(two, 30))["ratelimit"].startswith('"rows";r=10;t=')
    assert "refused" in await charge(one, 11)
    assert one.describe()["counted"] == "together, in Redis"
    await close(one, two)


async def test_replica_counts_by_itself_while_redis_is_away(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://:secret@127.0.0.1:{probe.getsockname()[1]}/0"
    limits = RateLimits(100, redis_url=url, shares=2)
    assert (await charge(limits, 50))["ratelimit-policy"] == '"rows";q=50;w=60'
    assert "refused" in await charge(limits, 1)
    assert "Redis" in caplog.text
    assert "secret" not in caplog.text
    await close(limits)


async def close(*limits: RateLimits) -> None:
    for one in limits:
        await one.close()


# ---- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def keys() -> Holders:
    return Holders()


@pytest.fixture
async def bench(keys: Holders) -> AsyncIterator[Bench]:
    bench = Bench(Gate(keys, RateLimits(20)))
    bench.resolver.add("sst2")
    await bench.service.start()
    async with bench.client:
        yield bench
    await bench.service.stop(grace_s=1)


def call(rows: int) -> dict[str, Any]:
    return {"adapter": "sst2", "inputs": ["a text"] * rows}


async def test_classify_costs_its_rows_and_says_so(bench: Bench, keys: Holders) -> None:
    key = keys.give("classify")
    good = await bench.classify(call(15), **key)
    assert (good.status_code, good.headers["ratelimit-policy"]) == (200, '"rows";q=20;w=60')
    refused = await bench.classify(call(6), **key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMITED")
    assert refused.headers["ratelimit"].startswith('"rows";r=5;t=')
    assert int(refused.headers["retry-after"]) >= 1
    assert (await bench.classify(call(5), **key)).status_code == 200
    assert (await bench.classify(call(20), **keys.give("classify"))).status_code == 200
    assert len(bench.engine.batches) == 3


async def test_rows_through_several_adapters_are_as_many_rows(bench: Bench, keys: Holders) -> None:
    bench.resolver.add("other")
    key = keys.give("classify")
    body = {"adapters": ["sst2", "other"], "inputs": ["a"] * 8}
    assert (await bench.classify(body, **key)).headers["ratelimit"].startswith('"rows";r=4;')


async def test_refused_call_is_read_by_the_hub_client_as_a_limit(bench: Bench, keys: Holders) -> None:
    from huggingface_hub.utils._http import parse_ratelimit_headers

    reply: httpx.Response = await bench.classify(call(20), **keys.give("classify"))
    info = parse_ratelimit_headers(reply.headers)
    assert info is not None
    assert (info.resource_type, info.remaining, info.limit) == ("rows", 0, 20)


async def test_charge_belongs_to_the_caller_of_the_present_request() -> None:
    limits = RateLimits(5)
    with acting_for(Caller("k1", None, limits.meter_of(KEY, {}))):
        await current_caller().charge(5)
        with pytest.raises(RateLimitedError):
            await current_caller().charge(1)
