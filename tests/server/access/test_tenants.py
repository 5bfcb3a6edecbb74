"""A key bound to a tenant: nothing outside of it exists, in answers, lists, hints, histories and repeated requests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.access.caller import Caller, acting_for
from server.access.gate import Gate
from server.admin import make_admin_app
from server.errors import AdapterNotFoundError
from server.names import Reference
from tests.server.access.holders import Holders, id_of
from tests.server.fakes import House, tiny_adapter

AT = "/v1/adapters"
ONE, TWO, THREE = (tiny_adapter(seed).to_bytes() for seed in (1, 2, 3))
SCOPES = ("classify", "read", "admin")


@pytest.fixture
def keys() -> Holders:
    return Holders()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(house: House, keys: Holders) -> AsyncIterator[httpx.AsyncClient]:
    """With acme/mail, acmf/mail, acme and globex/secret in it, registered by a key that is bound to nobody."""
    transport = httpx.ASGITransport(make_admin_app(house.registry, Gate(keys)))
    everybody = keys.give(*SCOPES)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        for name in ("acme/mail", "acmf/mail", "acme", "globex/secret", "acme.x/mail"):
            reply = await opened.put(f"{AT}/{name}", content=ONE, headers=everybody)
            assert reply.status_code == 201
        yield opened


def without_id(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    return error | {"request_id": "", "message": error["message"].replace("never", "*").replace("secret", "*")}


CALLS = [
    ("GET", "", {}),
    ("GET", "/versions/1", {}),
    ("DELETE", "", {}),
    ("DELETE", "?version=1", {}),
    ("POST", "/activate", {"json": {"version": 1}}),
    ("PUT", "/split", {"json": {"weights": {"1": 100}}}),
    ("PUT", "", {"content": TWO}),
]


@pytest.mark.parametrize(("method", "tail", "options"), CALLS)
async def test_foreign_adapter_that_exists_has_the_answer_of_one_that_does_not(
    client: httpx.AsyncClient, keys: Holders, house: House, method: str, tail: str, options: dict[str, Any]
) -> None:
    bound = keys.give(*SCOPES, prefix="acme/")
    there = await client.request(method, f"{AT}/globex/secret{tail}", headers=bound, **options)
    nowhere = await client.request(method, f"{AT}/globex/never{tail}", headers=bound, **options)
    assert there.status_code == nowhere.status_code == (403 if "content" in options else 404)
    assert without_id(there) == without_id(nowhere)
    entry = house.catalogue.snapshot().adapters["globex/secret"]
    assert (list(entry.versions), entry.active, entry.split) == ([1], 1, None)


@pytest.mark.parametrize(("method", "tail", "options"), CALLS[:-1])
async def test_foreign_adapter_has_the_answer_of_an_unknown_one_of_ones_own(
    client: httpx.AsyncClient, keys: Holders, method: str, tail: str, options: dict[str, Any]
) -> None:
    bound = keys.give(*SCOPES, prefix="acme/")
    foreign = await client.request(method, f"{AT}/globex/secret{tail}", headers=bound, **options)
    own = await client.request(method, f"{AT}/acme/secret{tail}", headers=bound, **options)
    replaced = str(without_id(own)).replace("acme/", "globex/")
    assert (foreign.status_code, str(without_id(foreign))) == (own.status_code, replaced)


@pytest.mark.parametrize("limit", [1, 100])
async def test_list_has_ones_own_alone_on_every_page(client: httpx.AsyncClient, keys: Holders, limit: int) -> None:
    bound = keys.give("read", "admin", prefix="acme/")
    await client.put(f"{AT}/acme/a", content=ONE, headers=bound)
    names, cursor = [], None
    for _ in range(5):
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(AT, params=query, headers=bound)).json()
        names += [adapter["name"] for adapter in page["adapters"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == ["acme/a", "acme/mail"]
    behind = (await client.get(AT, params={"cursor": "globex/a"}, headers=bound)).json()
    assert behind == {"adapters": [], "next": None}


async def test_list_of_an_unbound_key_has_all(client: httpx.AsyncClient, keys: Holders) -> None:
    page = (await client.get(AT, headers=keys.give("read"))).json()
    assert [adapter["name"] for adapter in page["adapters"]] == [
        "acme",
        "acme.x/mail",
        "acme/mail",
        "acmf/mail",
        "globex/secret",
    ]


async def test_bulk_refuses_foreign_names_in_their_place(
    client: httpx.AsyncClient, keys: Holders, house: House
) -> None:
    files = [(name, ("x", TWO)) for name in ("acme/new", "globex/secret", "globex/new", "acme")]
    reply = await client.post(f"{AT}/bulk", files=files, headers=keys.give("admin", prefix="acme/"))
    assert [item["status"] for item in reply.json()["results"]] == [201, 403, 403, 403]
    assert set(house.catalogue.snapshot().adapters) == {
        "acme",
        "acme.x/mail",
        "acme/mail",
        "acme/new",
        "acmf/mail",
        "globex/secret",
    }


async def test_history_names_the_key_that_changed(client: httpx.AsyncClient, keys: Holders) -> None:
    bound = keys.give("read", "admin", prefix="acme/")
    await client.put(f"{AT}/acme/mail", content=TWO, headers=bound)
    history = (await client.get(f"{AT}/acme/mail", headers=bound)).json()["history"]
    assert history[0]["key_id"] == id_of(bound)
    assert history[1]["key_id"] != id_of(bound)


async def test_idempotency_key_is_ones_own(client: httpx.AsyncClient, keys: Holders) -> None:
    mine, yours = keys.give("admin"), keys.give("admin")
    once = {"idempotency-key": "k1"}
    first = await client.put(f"{AT}/acme/mail", content=TWO, headers=mine | once)
    again = await client.put(f"{AT}/acme/mail", content=TWO, headers=mine | once)
    assert (first.status_code, again.json()) == (201, first.json())
    other = await client.put(f"{AT}/globex/secret", content=THREE, headers=yours | once)
    assert (other.status_code, other.json()["name"]) == (201, "globex/secret")
    reused = await client.put(f"{AT}/acme/other", content=THREE, headers=mine | once)
    assert reused.status_code == 409


# ---- the data plane's side -----------------------------------------------------------------------------------------


async def refusal(house: House, name: str, caller: Caller) -> AdapterNotFoundError:
    with acting_for(caller), pytest.raises(AdapterNotFoundError) as caught:
        await house.replicas.replicas[0].resolve(Reference(name), None)
    return caught.value


async def test_replica_knows_no_foreign_adapter_and_hints_at_none(client: httpx.AsyncClient, house: House) -> None:
    acme, globex = Caller("k1", "acme/"), Caller("k2", "globex/")
    foreign, nowhere = await refusal(house, "acme/mail", globex), await refusal(house, "acme/mali", globex)
    assert (foreign.message.replace("mail", "mali"), foreign.hint) == (nowhere.message, nowhere.hint)
    assert "acm" not in str(foreign.hint)
    assert (await refusal(house, "acme/mial", acme)).hint == "did you mean 'acme/mail'?"
    assert "acmf" not in str((await refusal(house, "acmf/mial", acme)).hint)
    with acting_for(acme):
        (await house.replicas.replicas[0].resolve(Reference("acme/mail"), None)).lease.release()


async def test_replica_told_by_a_bound_caller_still_follows_the_whole_catalogue(
    client: httpx.AsyncClient, keys: Holders, house: House
) -> None:
    everybody = keys.give("admin")
    house.replicas.deaf = {"r1", "r2"}
    await client.put(f"{AT}/globex/new", content=TWO, headers=everybody)
    replica = house.replicas.replicas[0]
    with acting_for(Caller("k", "acme/")):
        await replica.sync()
    assert "globex/new" in replica.names()
