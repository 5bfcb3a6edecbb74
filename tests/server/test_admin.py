"""The admin routes over HTTP: statuses, bodies, headers, names of one and two segments, and what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adakron.errors import BankFullError, BaseMismatchError, GoldenMismatchError
from server.admin import admin_openapi, make_admin_app
from server.blobs import MAX_BLOB_BYTES
from server.names import Reference
from tests.server.fakes import House, relabelled, tiny_adapter, with_broken_tensor

ONE, TWO = tiny_adapter(1), tiny_adapter(2)
AT = "/v1/adapters"


@pytest.fixture
def house(tmp_path: Path) -> Any:
    with House.open(tmp_path) as opened:
        yield opened


def client_of(house: House, root_path: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_admin_app(house.registry), root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """The application as Ray mounts it: the prefix is the root_path, and stays in the path."""
    async with client_of(house, AT) as opened:
        yield opened


async def put(client: httpx.AsyncClient, name: str, data: bytes = ONE.to_bytes(), **options: Any) -> httpx.Response:
    return await client.put(f"{AT}/{name}", content=data, **options)


def code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


async def test_application_answers_the_same_where_nobody_mounts_it(house: House) -> None:
    async with client_of(house, "") as mounted_nowhere:
        assert (await put(mounted_nowhere, "acme/spam")).status_code == 201
        assert (await mounted_nowhere.post(f"{AT}/acme/spam/activate", json={"version": 1})).status_code == 200
        assert (await mounted_nowhere.get(f"{AT}/")).json() == (await mounted_nowhere.get(AT)).json()


@pytest.mark.parametrize("name", ["sst2", "acme/spam"])
async def test_put_answers_201_with_version_hash_and_etag(client: httpx.AsyncClient, name: str) -> None:
    response = await put(client, name)
    assert response.status_code == 201
    assert response.json() == {
        "name": name,
        "version": 1,
        "sha256": ONE.sha256,
        "active": True,
        "generation": 1,
        "no_effect": False,
        "lagging": [],
    }
    assert response.headers["etag"] == '"1"'
    assert response.headers["x-request-id"]


async def test_put_of_the_same_bytes_answers_200_with_the_same_version(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    again = await put(client, "x")
    assert (again.status_code, again.json()["version"], again.json()["generation"]) == (200, 1, 1)


async def test_put_of_other_bytes_answers_201_with_the_next_version(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    assert (await put(client, "x", TWO.to_bytes())).json()["version"] == 2


async def test_put_with_activate_false_stages(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    staged = await put(client, "x", TWO.to_bytes(), params={"activate": "false"})
    assert (staged.status_code, staged.json()["active"]) == (201, False)
    assert (await client.get(f"{AT}/x")).json()["version"] == 1


async def test_put_answers_202_while_a_replica_lags(client: httpx.AsyncClient, house: House) -> None:
    house.replicas.deaf = {"r2"}
    response = await put(client, "x")
    assert (response.status_code, response.json()["lagging"]) == (202, ["r2"])


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
async def test_put_of_another_content_type_answers_415(client: httpx.AsyncClient, content_type: str) -> None:
    response = await put(client, "x", headers={"content-type": content_type})
    assert (response.status_code, code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("content_type", ["application/octet-stream", "Application/Octet-Stream; x=y"])
async def test_put_of_octets_is_taken(client: httpx.AsyncClient, content_type: str) -> None:
    assert (await put(client, "x", headers={"content-type": content_type})).status_code == 201


async def test_put_of_compressed_bytes_answers_415(client: httpx.AsyncClient) -> None:
    assert (await put(client, "x", headers={"content-encoding": "gzip"})).status_code == 415


async def test_put_declared_over_the_cap_answers_413(client: httpx.AsyncClient) -> None:
    response = await put(client, "x", headers={"content-length": str(MAX_BLOB_BYTES + 1)})
    assert response.status_code == 413


async def test_put_without_length_over_the_cap_answers_413(client: httpx.AsyncClient, house: House) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 2**20

    response = await client.put(f"{AT}/x", content=endless())
    assert (response.status_code, house.files()) == (413, [])


async def test_put_of_bad_weights_answers_422_with_the_tensor(client: httpx.AsyncClient, house: House) -> None:
    response = await put(client, "x", with_broken_tensor(ONE))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "NON_FINITE_TENSOR")
    assert error["tensor"]
    assert error["expected"] == "finite values"
    assert "NaN" in error["found"]
    assert (house.files(), house.catalogue.generation()) == ([], 0)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04pickle", b"PK\x03\x04" + b"0" * 100], ids=str)
async def test_put_of_what_is_no_artefact_answers_422(client: httpx.AsyncClient, data: bytes) -> None:
    assert (await put(client, "x", data)).status_code == 422


@pytest.mark.parametrize(
    ("refusal", "status", "expected_code"),
    [
        (BaseMismatchError("made for another", hint="train again"), 409, "BASE_MISMATCH"),
        (GoldenMismatchError("differs by 3"), 422, "GOLDEN_MISMATCH"),
        (BankFullError("full"), 507, "BANK_FULL"),
    ],
)
async def test_put_that_the_engine_refuses_answers_its_status(
    client: httpx.AsyncClient, house: House, refusal: Exception, status: int, expected_code: str
) -> None:
    house.engines[0].refuse[ONE.sha256] = refusal
    response = await put(client, "x")
    assert (response.status_code, code(response), house.files()) == (status, expected_code, [])
    assert (await client.get(f"{AT}/x")).status_code == 404


@pytest.mark.parametrize("name", ["UP", "a..b", "a--b", "a/b/c", "activate", "acme/health", "é", "a" * 65])
async def test_malformed_name_answers_422_on_every_route(client: httpx.AsyncClient, name: str) -> None:
    answers = [
        await client.get(f"{AT}/{name}"),
        await put(client, name),
        await client.delete(f"{AT}/{name}"),
        await client.post(f"{AT}/{name}/activate", json={"version": 1}),
    ]
    assert [(answer.status_code, code(answer)) for answer in answers] == [(422, "INVALID_REQUEST")] * 4


@pytest.mark.parametrize("path", ["x?activat=false", "x?activate=perhaps", "x?version=1"])
async def test_put_with_an_unknown_or_wrong_parameter_answers_422(client: httpx.AsyncClient, path: str) -> None:
    assert (await put(client, path)).status_code == 422
    assert (await client.get(f"{AT}/x")).status_code == 404


async def test_activate_rolls_back(client: httpx.AsyncClient) -> None:
    await put(client, "acme/spam")
    await put(client, "acme/spam", TWO.to_bytes())
    response = await client.post(f"{AT}/acme/spam/activate", json={"version": 1})
    assert response.status_code == 200
    assert response.json() == {
        "name": "acme/spam",
        "version": 1,
        "sha256": ONE.sha256,
        "active": True,
        "generation": 3,
        "lagging": [],
    }
    assert response.headers["etag"] == '"3"'
    assert (await client.get(f"{AT}/acme/spam")).json()["version"] == 1


async def test_activate_is_idempotent(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    answers = [await client.post(f"{AT}/x/activate", json={"version": 1}) for _ in range(2)]
    assert [answer.json()["generation"] for answer in answers] == [1, 1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"version": NaN}', 400),
        (b'{"version": 1, "version": 2}', 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"version": "1"}', 422),
        (b'{"version": true}', 422),
        (b'{"version": 1.0}', 422),
        (b'{"version": 0}', 422),
        (b'{"version": 1e99}', 422),
        (b'{"version": 1, "extra": 1}', 422),
        (b'{"version": 2}', 404),
    ],
)
async def test_activate_with_a_bad_body_is_refused(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    await put(client, "x")
    assert (await client.post(f"{AT}/x/activate", content=body)).status_code == status


async def test_activate_of_an_unknown_name_answers_404(client: httpx.AsyncClient) -> None:
    response = await client.post(f"{AT}/x/activate", json={"version": 1})
    assert (response.status_code, code(response)) == (404, "ADAPTER_NOT_FOUND")


async def test_delete_answers_the_bytes_freed_and_a_second_one_404(client: httpx.AsyncClient, house: House) -> None:
    await put(client, "acme/spam")
    response = await client.delete(f"{AT}/acme/spam")
    assert response.status_code == 200
    assert response.json() == {
        "name": "acme/spam",
        "versions": [1],
        "freed_bytes": {"device": 2 * ONE.size_bytes, "host": 0, "disk": ONE.size_bytes, "remote": 0},
        "generation": 2,
        "lagging": [],
    }
    assert (await client.delete(f"{AT}/acme/spam")).status_code == 404
    assert house.files() == []


async def test_delete_of_the_active_version_answers_409(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    response = await client.delete(f"{AT}/x", params={"version": 1})
    assert (response.status_code, code(response)) == (409, "CONFLICT")


async def test_delete_of_one_version_leaves_the_others(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    await put(client, "x", TWO.to_bytes())
    assert (await client.delete(f"{AT}/x", params={"version": 1})).json()["versions"] == [1]
    assert [row["version"] for row in (await client.get(f"{AT}/x")).json()["versions"]] == [2]


async def test_delete_of_an_unknown_version_answers_404(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    response = await client.delete(f"{AT}/x", params={"version": 9})
    assert (response.status_code, code(response)) == (404, "VERSION_NOT_FOUND")


@pytest.mark.parametrize("version", ["0", "-1", "x", "1e3", "1000000000", "9" * 5000, ""])
async def test_delete_of_a_malformed_version_answers_422_and_deletes_nothing(
    client: httpx.AsyncClient, version: str
) -> None:
    await put(client, "x")
    assert (await client.delete(f"{AT}/x?version={version}")).status_code in (414, 422)
    assert (await client.get(f"{AT}/x")).status_code == 200


@pytest.mark.parametrize("if_match", ['"7"', 'W/"1"', '"one"', '""', '"' + "9" * 30 + '"'])
async def test_write_with_another_etag_answers_412(client: httpx.AsyncClient, if_match: str) -> None:
    await put(client, "x")
    headers = {"if-match": if_match}
    answers = [
        await put(client, "x", TWO.to_bytes(), headers=headers),
        await client.post(f"{AT}/x/activate", json={"version": 1}, headers=headers),
        await client.delete(f"{AT}/x", headers=headers),
    ]
    assert [(answer.status_code, code(answer)) for answer in answers] == [(412, "PRECONDITION_FAILED")] * 3


@pytest.mark.parametrize("if_match", ['"1"', "*", '"7", "1"'])
async def test_write_with_the_right_etag_is_done(client: httpx.AsyncClient, if_match: str) -> None:
    await put(client, "x")
    assert (await put(client, "x", TWO.to_bytes(), headers={"if-match": if_match})).status_code == 201


async def test_star_on_an_unknown_adapter_answers_412(client: httpx.AsyncClient) -> None:
    assert (await put(client, "x", headers={"if-match": "*"})).status_code == 412


async def test_get_shows_versions_config_and_residency(client: httpx.AsyncClient) -> None:
    await put(client, "acme/spam")
    response = await client.get(f"{AT}/acme/spam")
    shown = response.json()
    assert response.headers["etag"] == '"1"'
    assert shown["config"] == ONE.config.to_dict()
    assert [(row["version"], row["active"], row["resident"]) for row in shown["versions"]] == [(1, True, ["r1", "r2"])]
    assert (shown["sha256"], shown["size_bytes"], shown["labels"]) == (ONE.sha256, ONE.size_bytes, ["ham", "spam"])


async def test_get_of_a_staged_adapter_has_no_active_version(client: httpx.AsyncClient) -> None:
    await put(client, "x", params={"activate": "false"})
    shown = (await client.get(f"{AT}/x")).json()
    assert (shown["version"], shown["sha256"], shown["labels"]) == (None, None, ["ham", "spam"])


@pytest.mark.parametrize("path", [AT, f"{AT}/"])
async def test_list_pages_by_cursor(client: httpx.AsyncClient, path: str) -> None:
    for name in ("b", "a", "c"):
        await put(client, name)
    first = (await client.get(path, params={"limit": 2})).json()
    assert ([row["name"] for row in first["adapters"]], first["next"]) == (["a", "b"], "b")
    rest = (await client.get(path, params={"limit": 2, "cursor": first["next"]})).json()
    assert ([row["name"] for row in rest["adapters"]], rest["next"]) == (["c"], None)


async def test_list_of_nothing_is_empty(client: httpx.AsyncClient) -> None:
    assert (await client.get(AT)).json() == {"adapters": [], "next": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=../x", "colour=red", "cursor=" + "a" * 200]
)
async def test_list_with_a_bad_parameter_answers_422(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"{AT}?{query}")).status_code == 422


async def test_list_shows_a_bounded_number_of_labels(client: httpx.AsyncClient) -> None:
    many = relabelled(tiny_adapter(labels=[f"l{n}" for n in range(300)]), [f"m{n}" for n in range(300)])
    await put(client, "x", many.to_bytes())
    row = (await client.get(AT)).json()["adapters"][0]
    assert (len(row["labels"]), row["num_labels"]) == (256, 300)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", AT, "GET"),
        ("HEAD", AT, "GET"),
        ("OPTIONS", f"{AT}/x", "DELETE, GET, PUT"),
        ("PATCH", f"{AT}/acme/spam", "DELETE, GET, PUT"),
        ("POST", f"{AT}/x", "DELETE, GET, PUT"),
        ("BREW", f"{AT}/x", "DELETE, GET, PUT"),
    ],
)
async def test_other_method_answers_405_with_all_allowed_ones(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/v1/adaptersX"])
async def test_there_are_no_other_routes(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("name", ["x%0d%0ay", "x%0a", "%00", "x%09", "x%7f"])
async def test_name_with_a_control_character_is_no_path(client: httpx.AsyncClient, name: str) -> None:
    refused = await put(client, name)
    assert (refused.status_code, code(refused)) == (400, "MALFORMED_REQUEST")


async def test_trailing_slash_is_not_redirected(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    assert (await client.get(f"{AT}/x/")).status_code == 422


async def test_error_holds_no_more_of_the_input_than_64_characters(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{AT}/{'A' * 3000}")
    assert response.status_code == 422
    assert len(response.content) <= 4096
    assert "A" * 65 not in response.text


def test_openapi_names_every_route_with_its_errors() -> None:
    paths = admin_openapi()["paths"]
    assert {path: sorted(methods) for path, methods in paths.items()} == {
        AT: ["get"],
        AT + "/{name}": ["delete", "get", "put"],
        AT + "/{name}/activate": ["post"],
        AT + "/{name}/split": ["put"],
        AT + "/{name}/stats": ["get"],
        AT + "/bulk": ["post"],
        AT + "/{name}/versions/{version}": ["get"],
    }
    put_responses = paths[AT + "/{name}"]["put"]["responses"]
    assert {"200", "201", "202", "400", "409", "412", "413", "415", "422", "503", "507"} <= set(put_responses)


def test_openapi_has_an_example_for_every_response() -> None:
    for methods in admin_openapi()["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                assert (
                    "application/octet-stream" in response["content"]
                    or response["content"]["application/json"]["examples"]
                ), status


async def test_documented_answers_have_the_members_of_real_ones(client: httpx.AsyncClient) -> None:
    real = {
        "put": await put(client, "x"),
        "get": await client.get(f"{AT}/x"),
        "activate": await client.post(f"{AT}/x/activate", json={"version": 1}),
        "list": await client.get(AT),
        "split": await client.put(f"{AT}/x/split", json={"shadow": 1}),
        "delete": await client.delete(f"{AT}/x"),
    }
    paths = admin_openapi()["paths"]
    documented = {
        "put": paths[AT + "/{name}"]["put"]["responses"]["201"],
        "get": paths[AT + "/{name}"]["get"]["responses"]["200"],
        "activate": paths[AT + "/{name}/activate"]["post"]["responses"]["200"],
        "list": paths[AT]["get"]["responses"]["200"],
        "split": paths[AT + "/{name}/split"]["put"]["responses"]["200"],
        "delete": paths[AT + "/{name}"]["delete"]["responses"]["200"],
    }
    for operation, response in real.items():
        (example,) = documented[operation]["content"]["application/json"]["examples"].values()
        assert example["value"].keys() == response.json().keys(), operation


async def test_request_with_the_same_key_is_done_once(client: httpx.AsyncClient) -> None:
    await put(client, "x")
    headers = {"idempotency-key": "deploy-7", "if-match": '"1"'}
    first = await put(client, "x", TWO.to_bytes(), headers=headers)
    again = await put(client, "x", TWO.to_bytes(), headers=headers)
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    for method, path, body in [
        ("POST", "/x/activate", {"version": 1}),
        ("DELETE", "/x?version=2", None),
        ("DELETE", "/x", None),
    ]:
        headers = {"idempotency-key": f"{method} {path}"}
        first = await client.request(method, AT + path, json=body, headers=headers)
        again = await client.request(method, AT + path, json=body, headers=headers)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.json()["generation"] == first.json()["generation"]


async def test_key_of_another_request_answers_409(client: httpx.AsyncClient) -> None:
    await put(client, "x", headers={"idempotency-key": "k"})
    for response in (
        await put(client, "x", TWO.to_bytes(), headers={"idempotency-key": "k"}),
        await put(client, "y", headers={"idempotency-key": "k"}),
        await client.delete(f"{AT}/x", headers={"idempotency-key": "k"}),
    ):
        assert (response.status_code, code(response)) == (409, "CONFLICT")


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_key_that_is_empty_or_too_long_answers_422(client: httpx.AsyncClient, key: str) -> None:
    response = await put(client, "x", headers={"idempotency-key": key})
    assert response.status_code == 422


async def test_history_says_who_did_what(client: httpx.AsyncClient) -> None:
    await put(client, "x", headers={"x-request-id": "mine-1"})
    await client.post(f"{AT}/x/activate", json={"version": 1})
    history = (await client.get(f"{AT}/x")).json()["history"]
    assert [(event["action"], event["version"], event["request_id"]) for event in history] == [
        ("register", 1, "mine-1")
    ]
    assert history[0]["source"] == "127.0.0.1"


@pytest.fixture
async def two_versions(client: httpx.AsyncClient) -> httpx.AsyncClient:
    await put(client, "acme/x")
    await put(client, "acme/x", TWO.to_bytes(), params={"activate": "false"})
    return client


async def test_split_answers_what_holds_now_and_shows_in_the_listing(two_versions: httpx.AsyncClient) -> None:
    body = {"weights": {"1": 90, "2": 10}, "shadow": 2}
    response = await two_versions.put(f"{AT}/acme/x/split", json=body)
    assert (response.status_code, response.headers["etag"]) == (200, '"3"')
    assert response.json() == {"name": "acme/x", **body, "generation": 3, "lagging": []}
    shown = (await two_versions.get(f"{AT}/acme/x")).json()
    assert (shown["split"], shown["version"]) == (body, 1)
    assert shown["shadow_rows"] == {"same": 0, "different": 0, "failed": 0, "dropped": 0}
    assert (await two_versions.get(AT)).json()["adapters"][0]["split"] == body
    await two_versions.post(f"{AT}/acme/x/activate", json={"version": 2})
    shown = (await two_versions.get(f"{AT}/acme/x")).json()
    assert (shown["split"], shown["shadow_rows"]) == (None, None)


async def test_split_is_a_compare_and_set_too(two_versions: httpx.AsyncClient) -> None:
    path, body = f"{AT}/acme/x/split", {"weights": {"1": 100}}
    assert (await two_versions.put(path, json=body, headers={"if-match": '"1"'})).status_code == 412
    assert (await two_versions.put(path, json=body, headers={"if-match": '"2"'})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"weights": {}},
        {"weights": {"1": 99}},
        {"weights": {"1": 60, "2": 60}},
        {"weights": {"1": 101, "2": -1}},
        {"weights": {"01": 100}},
        {"weights": {"one": 100}},
        {"weights": {"1": 50.0, "2": 50}},
        {"weights": {"1": True, "2": 99}},
        {"weights": {str(n + 1): 5 for n in range(20)}},
        {"weights": {"1": 100}, "shadow": "2"},
        {"weights": {"1": 100}, "shadow": 0},
        {"weights": {"1": 100}, "colour": "red"},
        [],
    ],
)
async def test_split_of_another_shape_answers_422(two_versions: httpx.AsyncClient, body: object) -> None:
    response = await two_versions.put(f"{AT}/acme/x/split", json=body)
    assert (response.status_code, code(response)) == (422, "INVALID_REQUEST")
    assert (await two_versions.get(f"{AT}/acme/x")).json()["generation"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/acme/x/split", {"weights": {"9": 100}}, 404),
        ("/acme/x/split", {"shadow": 9}, 404),
        ("/acme/y/split", {"shadow": 1}, 404),
        ("/Acme/x/split", {"shadow": 1}, 422),
    ],
)
async def test_split_of_what_is_not_there_is_refused(
    two_versions: httpx.AsyncClient, path: str, body: object, status: int
) -> None:
    assert (await two_versions.put(AT + path, json=body)).status_code == status


async def test_delete_of_a_version_in_the_split_answers_409(two_versions: httpx.AsyncClient) -> None:
    await two_versions.put(f"{AT}/acme/x/split", json={"shadow": 2})
    response = await two_versions.delete(f"{AT}/acme/x?version=2")
    assert (response.status_code, code(response)) == (409, "CONFLICT")


async def test_fetched_version_is_the_file_that_was_put(two_versions: httpx.AsyncClient) -> None:
    response = await two_versions.get(f"{AT}/acme/x/versions/2")
    assert (response.status_code, response.content) == (200, TWO.to_bytes())
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["etag"] == f'"{TWO.sha256}"'
    for path, status in (("acme/x/versions/3", 404), ("y/versions/1", 404), ("acme/x/versions/0", 422)):
        assert (await two_versions.get(f"{AT}/{path}")).status_code == status


async def test_fetch_of_a_damaged_file_answers_503_and_sends_nothing_of_it(
    two_versions: httpx.AsyncClient, house: House
) -> None:
    path = house.blobs._path(ONE.sha256)
    path.chmod(0o644)
    path.write_bytes(b"x" + ONE.to_bytes()[1:])
    response = await two_versions.get(f"{AT}/acme/x/versions/1")
    assert (response.status_code, code(response)) == (503, "STORAGE_UNAVAILABLE")


async def test_listing_says_tier_and_last_use(client: httpx.AsyncClient, house: House) -> None:
    await put(client, "x")
    assert (await client.get(AT)).json()["adapters"][0]["last_used_at"] is None
    (await house.replicas.replicas[0].resolve(Reference("x"), None)).lease.release()
    listed = (await client.get(AT)).json()["adapters"][0]
    assert (listed["requests"], listed["tier"]) == (1, "device")
    assert listed["last_used_at"].endswith("+00:00")
    house.engines[0].refuse[TWO.sha256] = house.engines[1].refuse[TWO.sha256] = BankFullError("full")
    house.catalogue.add_version("y", TWO.sha256, 1)
    for replica in house.replicas.replicas:
        await replica.sync()
    assert (await client.get(AT)).json()["adapters"][1]["tier"] == "store"
