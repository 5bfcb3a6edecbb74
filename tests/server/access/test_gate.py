"""The door of every route of both applications: who is let in, who is turned away, and that none is forgotten."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server import admin, app
from server.access.caller import NOBODY, current_caller
from server.access.gate import PUBLIC, Gate, Needed, Scopes, guard_routes, needs, scopes_of
from server.access.keys import SCOPES, Scope, make_key
from server.access.rates import WRONG_KEYS_PER_MINUTE, RateLimits
from server.admin import admin_openapi, make_admin_app
from server.error_replies import install_error_handlers
from tests.server.access.holders import Holders, id_of
from tests.server.fakes import House
from tests.server.test_app import Bench


@pytest.fixture
def keys() -> Holders:
    return Holders()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


@pytest.fixture
async def data(keys: Holders) -> AsyncIterator[httpx.AsyncClient]:
    bench = Bench(Gate(keys, RateLimits(None)))
    bench.resolver.add("sst2")
    await bench.service.start()
    async with bench.client as client:
        yield client
    await bench.service.stop(grace_s=1)


@pytest.fixture
async def administration(keys: Holders, house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_admin_app(house.registry, Gate(keys, RateLimits(None))))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


DATA_SCOPES = scopes_of(Bench().app, app.FRAMEWORK_ROUTES)
ADMIN_SCOPES = scopes_of(admin._app_of(None))


def closed(scopes: Scopes) -> list[tuple[str, str, Needed]]:
    return [
        (method, path.replace("{name}", "acme/x").replace("{version}", "1"), needed)
        for (method, path), needed in sorted(scopes.items())
        if needed is not None
    ]


def test_every_route_of_both_applications_has_a_scope_or_is_public() -> None:
    assert {path for (_, path), needed in (DATA_SCOPES | ADMIN_SCOPES).items() if needed is None} <= PUBLIC
    for document, scopes in ((Bench().app.openapi(), DATA_SCOPES), (admin_openapi(), ADMIN_SCOPES)):
        for (method, path), needed in scopes.items():
            operation = document["paths"].get(path, {}).get(method.lower())
            if operation is not None:
                assert operation.get("security") == (None if needed is None else [{"key": [needed.scope]}])
                assert needed is None or {"401", "403", "429"} <= operation["responses"].keys()


@pytest.mark.parametrize(("method", "path", "needed"), closed(DATA_SCOPES))
async def test_route_of_the_data_plane_opens_to_its_scope_alone(
    data: httpx.AsyncClient, keys: Holders, method: str, path: str, needed: Needed
) -> None:
    await opens_to_its_scope_alone(data, keys, method, path, needed)


@pytest.mark.parametrize(("method", "path", "needed"), closed(ADMIN_SCOPES))
async def test_route_of_the_admin_plane_opens_to_its_scope_alone(
    administration: httpx.AsyncClient, keys: Holders, method: str, path: str, needed: Needed
) -> None:
    await opens_to_its_scope_alone(administration, keys, method, path, needed)


async def opens_to_its_scope_alone(
    client: httpx.AsyncClient, keys: Holders, method: str, path: str, needed: Needed
) -> None:
    keyless = await client.request(method, path)
    assert keyless.status_code == 401
    assert keyless.headers["www-authenticate"].startswith("Bearer")
    others: list[Scope] = [scope for scope in SCOPES if scope != needed.scope]
    assert (await client.request(method, path, headers=keys.give(*others))).status_code == 403
    assert (await client.request(method, path, headers=keys.give(needed.scope))).status_code not in (401, 403)
    bound = await client.request(method, path, headers=keys.give(needed.scope, prefix="acme/"))
    assert (bound.status_code == 403) == needed.whole


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_public(data: httpx.AsyncClient, path: str) -> None:
    assert (await data.get(path)).status_code == 200
    assert (await data.get(path, headers={"authorization": "Bearer wrong"})).status_code == 200


async def test_everything_is_open_where_no_key_is_asked_for(data: httpx.AsyncClient, keys: Holders) -> None:
    keys.is_open = True
    for headers in ({"host": "localhost"}, {"host": "127.0.0.1:8000", "authorization": "Bearer hf_somebody's"}):
        assert (await data.get("/v1/info", headers=headers)).status_code == 200


WRONG = {
    "none": [],
    "empty": [("authorization", "")],
    "no scheme": [("authorization", "KEY")],
    "another scheme": [("authorization", "Basic KEY")],
    "bearer alone": [("authorization", "Bearer")],
    "two headers": [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY")],
    "tab": [("authorization", "Bearer\tKEY")],
    "two spaces": [("authorization", "Bearer  KEY")],
    "space at the end": [("authorization", "Bearer KEY ")],
    "beyond ASCII": [("authorization", b"Bearer \xc3\xa9\xff")],
    "NUL": [("authorization", b"Bearer \x00")],
    "long": [("authorization", "Bearer " + "x" * 8000)],
    "unknown": [("authorization", f"Bearer {make_key()[0]}")],
    "somebody else's": [("authorization", "Bearer hf_abcdefghijklmnop")],
    "cookie": [("cookie", "authorization=Bearer KEY; key=KEY")],
    "other header": [("x-api-key", "KEY"), ("proxy-authorization", "Bearer KEY")],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_wrong_key_has_one_answer_whatever_is_wrong_with_it(
    data: httpx.AsyncClient, keys: Holders, headers: list[tuple[str, Any]]
) -> None:
    right = keys.give("read")["authorization"].removeprefix("Bearer ")
    filled = [(name, value.replace("KEY", right) if isinstance(value, str) else value) for name, value in headers]
    reply = await data.get("/v1/info", headers=filled)
    error = reply.json()["error"]
    expected = (await data.get("/v1/info")).json()["error"]
    assert reply.status_code == 401
    assert error | {"request_id": ""} == expected | {"request_id": ""}
    assert right not in reply.text + str(reply.headers)


async def test_key_in_the_query_opens_nothing(data: httpx.AsyncClient, keys: Holders) -> None:
    key = keys.give("read")["authorization"].removeprefix("Bearer ")
    for name in ("key", "api_key", "access_token", "authorization"):
        assert (await data.get("/v1/info", params={name: key})).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_scheme_is_read_in_any_case(data: httpx.AsyncClient, keys: Holders, scheme: str) -> None:
    key = keys.give("read")["authorization"].removeprefix("Bearer ")
    assert (await data.get("/v1/info", headers={"authorization": f"{scheme} {key}"})).status_code == 200


async def test_many_wrong_keys_from_one_address_are_429_and_a_right_one_still_works(
    data: httpx.AsyncClient, keys: Holders
) -> None:
    wrong = {"authorization": "Bearer wrong"}
    statuses = [(await data.get("/v1/info", headers=wrong)).status_code for _ in range(WRONG_KEYS_PER_MINUTE + 3)]
    assert statuses == [401] * WRONG_KEYS_PER_MINUTE + [429] * 3
    turned_away = await data.get("/v1/info", headers=wrong)
    assert 1 <= int(turned_away.headers["retry-after"]) <= 80
    assert (await data.get("/v1/info", headers=keys.give("read"))).status_code == 200
    assert (await data.get("/v1/info")).status_code == 401


async def test_body_of_a_refused_request_is_not_read(administration: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("somebody read it")
        yield b""

    assert (await administration.put("/v1/adapters/x", content=body())).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/adapters/%2e%2e/x", "/v1/adapters//x", "/v1/adapters/./x", "/v1/adapters/x%2fy%2fz", "/v1/adapters/x%0d%0ay"],
)
async def test_odd_path_opens_no_admin_route(administration: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert (await administration.request(method, path)).status_code in (400, 401, 404)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "healthz"},
        {"host": "x/healthz?"},
        {"host": "127.0.0.1"},
        {"x-forwarded-host": "/healthz"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-prefix": "/healthz"},
        {"x-original-url": "/healthz"},
        {"x-rewrite-url": "/healthz"},
        {"x-http-method-override": "GET"},
        {"forwarded": "for=127.0.0.1;host=healthz"},
    ],
)
async def test_header_that_names_another_place_opens_nothing(
    administration: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for method, path in (("GET", ""), ("PUT", "/x"), ("DELETE", "/x"), ("POST", "/bulk"), ("POST", "/x/activate")):
        reply = await administration.request(method, f"/v1/adapters{path}", headers=headers)
        assert reply.status_code in (400, 401)


async def test_no_key_and_no_token_is_logged(
    data: httpx.AsyncClient, keys: Holders, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good = keys.give("classify", "read")
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    for headers in (good, {"authorization": f"Bearer {token}"}):
        for path in ("/v1/info", "/metrics", "/no-such-route"):
            await data.get(path, headers=headers)
        await data.post("/v1/classify", json={"adapter": "sst2", "inputs": "a"}, headers=headers)
        await data.post("/v1/classify", content=b"{", headers=headers)
    assert token not in caplog.text
    assert good["authorization"].removeprefix("Bearer ") not in caplog.text


# ---- declaring -----------------------------------------------------------------------------------------------------


def app_of(*routers: APIRouter) -> FastAPI:
    built = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for router in routers:
        built.include_router(router, prefix="/p")
    install_error_handlers(built)
    return built


def test_route_without_a_scope_is_refused() -> None:
    built = app_of()

    @built.get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(TypeError, match="/forgotten has no scope"):
        guard_routes(built, Gate())


def test_route_of_an_included_router_without_a_scope_is_refused() -> None:
    router = APIRouter()

    @router.get("/healthz")
    async def not_the_public_one() -> None: ...

    with pytest.raises(TypeError, match="/p/healthz has no scope"):
        guard_routes(app_of(router), Gate())


def test_plain_route_in_an_included_router_is_refused() -> None:
    router = APIRouter(routes=[Route("/x", needs("read")(lambda request: PlainTextResponse("")))])
    with pytest.raises(TypeError, match="API routes alone"):
        guard_routes(app_of(router), Gate())


async def test_included_route_has_the_gate_before_it(keys: Holders) -> None:
    inner, outer = APIRouter(), APIRouter()

    @inner.get("/x")
    @needs("read")
    async def who() -> str | None:
        return current_caller().key_id

    outer.include_router(inner, prefix="/q")
    built = app_of(outer)
    guard_routes(built, Gate(keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(built), base_url="http://test") as client:
        assert (await client.get("/p/q/x")).status_code == 401
        assert (await client.get("/p/q/x", headers=keys.give("admin"))).status_code == 403
        good = keys.give("read")
        assert (await client.get("/p/q/x", headers=good)).json() == id_of(good)
    assert current_caller() is NOBODY


def test_framework_routes_are_declared_by_path() -> None:
    built = FastAPI(docs_url=None, redoc_url=None)
    with pytest.raises(TypeError, match=r"openapi\.json"):
        guard_routes(built, Gate())
    guard_routes(built, Gate(), {"/openapi.json": Needed("read")})
