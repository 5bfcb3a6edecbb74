"""Bulk registration over HTTP: each artefact by itself, groups committed at once, nothing left of what failed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adakron.errors import BankFullError
from server import bulk
from server.admin import make_admin_app
from server.errors import StorageUnavailableError
from tests.server.fakes import House, tiny_adapter, with_broken_tensor

AT = "/v1/adapters/bulk"
SOME = [tiny_adapter(seed) for seed in range(20)]


@pytest.fixture
def house(tmp_path: Path) -> Any:
    with House.open(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_admin_app(house.registry), root_path="/v1/adapters")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


async def post(client: httpx.AsyncClient, *parts: tuple[str, bytes], **options: Any) -> httpx.Response:
    return await client.post(AT, files=[(name, ("file", data)) for name, data in parts], **options)


async def test_each_part_is_registered_under_its_name_in_groups_of_one_generation(
    client: httpx.AsyncClient, house: House
) -> None:
    response = await post(client, *((f"acme/n{n}", adapter.to_bytes()) for n, adapter in enumerate(SOME)))
    body = response.json()
    assert (response.status_code, body["registered"], body["failed"], body["lagging"]) == (200, 20, 0, [])
    assert [result["name"] for result in body["results"]] == [f"acme/n{n}" for n in range(20)]
    assert {result["status"] for result in body["results"]} == {201}
    assert [result["sha256"] for result in body["results"]] == [adapter.sha256 for adapter in SOME]
    assert house.catalogue.generation() == 2  # 16 and 4
    assert all(engine.adapters.keys() == {a.sha256 for a in SOME} for engine in house.engines)
    assert house.catalogue.page(1)[0].config == SOME[0].config.to_json()


async def test_bad_parts_fail_in_their_places_and_leave_nothing(client: httpx.AsyncClient, house: House) -> None:
    house.engines[0].refuse[SOME[3].sha256] = BankFullError("full")
    body = (
        await post(
            client,
            ("good", SOME[0].to_bytes()),
            ("Bad Name", SOME[1].to_bytes()),
            ("broken", with_broken_tensor(SOME[2])),
            ("full", SOME[3].to_bytes()),
            ("empty", b""),
            ("x" * 1000, b"y"),
            ("also/good", SOME[4].to_bytes()),
        )
    ).json()
    assert [result["status"] for result in body["results"]] == [201, 422, 422, 507, 422, 422, 201]
    assert (body["registered"], body["failed"]) == (2, 5)
    assert body["results"][2]["error"]["code"] == "NON_FINITE_TENSOR"
    assert body["results"][2]["error"]["tensor"]
    assert len(body["results"][5]["name"]) < 80
    assert house.files() == sorted([SOME[0].sha256, SOME[4].sha256])


async def test_same_bytes_again_are_the_same_versions(client: httpx.AsyncClient, house: House) -> None:
    parts = [("a", SOME[0].to_bytes()), ("b", SOME[0].to_bytes()), ("a", SOME[1].to_bytes())]
    first = (await post(client, *parts)).json()["results"]
    assert [(r["status"], r["version"]) for r in first] == [(201, 1), (201, 1), (201, 2)]
    again = (await post(client, *parts[1:])).json()["results"]
    assert [(r["status"], r["version"]) for r in again] == [(200, 1), (200, 2)]
    assert house.catalogue.generation() == 1


async def test_staged_parts_are_not_active(client: httpx.AsyncClient) -> None:
    (result,) = (await post(client, ("a", SOME[0].to_bytes()), params={"activate": "false"})).json()["results"]
    assert (result["status"], result["active"]) == (201, False)


async def test_part_over_the_cap_fails_alone(client: httpx.AsyncClient, house: House) -> None:
    house.blobs._max_bytes = SOME[0].size_bytes
    body = (await post(client, ("large", SOME[0].to_bytes() + b"x" * 3_000_000), ("good", SOME[1].to_bytes()))).json()
    assert [result["status"] for result in body["results"]] == [413, 201]
    assert house.files() == [SOME[1].sha256]


async def test_what_there_is_no_time_for_is_untried_and_may_be_sent_again(
    client: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BEGIN_WITHIN_S", -1.0)
    body = (await post(client, ("a", SOME[0].to_bytes()), ("b", SOME[1].to_bytes()))).json()
    assert [(r["status"], r["error"]["code"]) for r in body["results"]] == [(503, "NOT_READY")] * 2
    assert (house.files(), house.catalogue.generation()) == ([], 0)


async def test_catalogue_that_fails_fails_the_group_and_leaves_nothing(
    client: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object, **options: object) -> None:
        raise StorageUnavailableError("away")

    monkeypatch.setattr(house.catalogue, "add_versions", away)
    body = (await post(client, ("a", SOME[0].to_bytes()))).json()
    assert [result["status"] for result in body["results"]] == [503]
    assert house.files() == []


async def test_replicas_that_lag_are_named_with_202(client: httpx.AsyncClient, house: House) -> None:
    house.replicas.deaf = {"r2"}
    response = await post(client, ("a", SOME[0].to_bytes()))
    assert (response.status_code, response.json()["lagging"]) == (202, ["r2"])


async def test_body_that_breaks_off_keeps_what_was_committed_and_no_file_more(
    client: httpx.AsyncClient, house: House
) -> None:
    request = client.build_request("POST", AT, files=[(f"n{n}", a.to_bytes()) for n, a in enumerate(SOME)])
    whole = await request.aread()
    cut = whole[: int(len(whole) * 0.95)]
    response = await client.post(AT, content=cut, headers={"content-type": request.headers["content-type"]})
    assert response.status_code == 400
    assert sorted(listed.name for listed in house.catalogue.page(99)) == sorted(f"n{n}" for n in range(16))
    assert len(house.files()) == 16


async def test_two_at_once_over_the_same_names_both_end(client: httpx.AsyncClient) -> None:
    names = [f"n{n}" for n in range(6)]
    async with asyncio.timeout(20):
        first, second = await asyncio.gather(
            post(client, *((name, SOME[n].to_bytes()) for n, name in enumerate(names))),
            post(client, *((name, SOME[n + 6].to_bytes()) for n, name in enumerate(reversed(names)))),
        )
    assert {r["status"] for reply in (first, second) for r in reply.json()["results"]} == {201}


async def test_other_content_type_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(AT, content=b"x", headers={"content-type": "application/x-tar"})).status_code == 415


async def test_cap_of_this_route_is_its_own(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, length, status in ((AT, bulk.MAX_BULK_BYTES + 1, 413), (AT, 100 * 2**20, 415)):
        response = await client.post(path, content=b"x", headers={"content-length": str(length)})
        assert response.status_code == status


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(None, 15), ("", 15), ("x", 15), ("nan", 15), ("-5", 15), ("10", 15), ("60", 50), ("inf", 600), ("1e9", 600)],
)
def test_groups_begin_for_as_long_as_the_client_asked_but_for_the_time_of_the_last(
    asked: str | None, seconds: float
) -> None:
    assert bulk.begin_within_s(asked) == seconds
