"""/docs works without any network but this server's."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import pytest_asyncio

from server import docs_page
from server.access.gate import Gate
from tests.server.access.holders import Holders
from tests.server.test_app import Bench


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with Bench().client as opened:
        yield opened


class Addresses(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in ("src", "href") and value]
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)


async def test_the_page_asks_this_server_alone(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "://" not in page.text
    addresses = Addresses(page.text)
    assert addresses.inline == []
    assert len(addresses.found) == len(docs_page._ASSETS)
    for address in addresses.found:
        assert not address.startswith("/"), "behind a prefix that would lead elsewhere"
        asset = await client.get(urljoin("/docs", address))
        assert asset.status_code == 200
        assert asset.headers["content-type"] == docs_page._ASSETS[address.removeprefix("docs/")]
        assert asset.headers["x-content-type-options"] == "nosniff"


async def test_the_policy_forbids_every_other_origin(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy
    assert set(re.findall(r"[\w-]+-src ([^;]*)", policy)) <= {"'self'", "'self' 'unsafe-inline'", "'self' data:"}


async def test_scripts_of_ours_and_styles_name_no_other_server(client: httpx.AsyncClient) -> None:
    script = (await client.get("/docs/initializer.js")).text
    assert "://" not in script
    assert "validatorUrl: null" in script
    assert (await client.get("/openapi.json")).status_code == 200
    style = (await client.get("/docs/swagger-ui.css")).text
    assert all(address.startswith("data:") for address in re.findall(r"url\([\"']?([^)\"']+)", style))
    assert "@import" not in style


async def test_the_page_is_public_and_what_it_shows_is_not() -> None:
    """A browser opens an address without a key; the page's script asks for one."""
    keys = Holders()
    async with Bench(Gate(keys)).client as client:
        for path in ("/docs", *(f"/docs/{name}" for name in docs_page._ASSETS)):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/openapi.json")).status_code == 401
        assert (await client.get("/openapi.json", headers=keys.give("classify"))).status_code == 403
        assert (await client.get("/openapi.json", headers=keys.give("read"))).status_code == 200


async def test_what_is_typed_into_the_page_cannot_end_in_an_address(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert "form-action 'none'" in page.headers["content-security-policy"]
    [field] = re.findall(r"<input[^>]*>", page.text)
    assert "name=" not in field
    script = (await client.get("/docs/initializer.js")).text
    assert "persistAuthorization: false" in script
    assert not re.search(r"localStorage|sessionStorage|cookie|location|history", script)


async def test_files_are_sent_again_only_when_they_changed(client: httpx.AsyncClient) -> None:
    first = await client.get("/docs/swagger-ui.css")
    again = await client.get("/docs/swagger-ui.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.get("/docs/swagger-ui.css", headers={"if-none-match": '"x"'})).content == first.content


@pytest.mark.parametrize("name", ["LICENSE", "nothing.js", "..%2fapp.py", "%2e%2e/app.py", "swagger-ui.css/"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    reply = await client.get(f"/docs/{name}")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


async def test_the_page_is_not_in_the_document(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path.startswith("/docs")]


def test_the_licences_are_there(project_dir: Path) -> None:
    folder = project_dir / "server" / "swagger_ui"
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "SmartBear" in (folder / "NOTICE").read_text()
    assert "swagger-ui-dist 5.35.0" in (project_dir / "NOTICE").read_text()
