"""/docs in a real browser: where there are keys the page asks for one, and keeps it nowhere that lasts."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn

from server.access.gate import Gate
from server.access.rates import RateLimits
from tests.browser import Browser, browser
from tests.server.access.holders import Holders
from tests.server.test_app import Bench

KEPT = """
return [localStorage.length, sessionStorage.length, document.cookie, location.href, document.forms.length];
"""


@pytest.fixture
def keys() -> Holders:
    return Holders()


@pytest.fixture
async def url(keys: Holders) -> AsyncIterator[str]:
    bench = Bench(Gate(keys, RateLimits(None)))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(bench.app, log_config=None, lifespan="off"))
        running = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_the_page_asks_for_a_key_and_forgets_it(url: str, keys: Holders, tmp_path: Path) -> None:
    await asyncio.to_thread(_walk, url, keys, tmp_path)


def _walk(url: str, keys: Holders, folder: Path) -> None:
    secrets = {scope: keys.give(scope)["authorization"].removeprefix("Bearer ") for scope in ("read", "classify")}
    with browser(free_port()) as window:
        window.open(f"{url}/docs")
        window.await_text("This server asks for a key")
        for offered, answer in {
            "ad_nobody_knows": "does not know this key",
            "naïve ☃": "is it the whole key?",
            secrets["classify"]: "has not the scope read",
        }.items():
            _offer(window, offered)
            window.await_text(answer)
        window.screenshot(folder / "key.png")
        _offer(window, f" {secrets['read']} ")  # as it is pasted
        window.await_text("/v1/classify")
        # Nothing of the key is left where the next visitor of this computer could find it.
        assert window.run(KEPT) == [0, 0, "", f"{url}/docs", 0]
        assert secrets["read"] not in window.run("return document.documentElement.outerHTML")
        # And what is tried from the page is sent with it.
        _execute(window, "/v1/info")
        window.await_that("return document.querySelector('.live-responses-table .response-col_status') !== null")
        status = window.run(
            "return document.querySelector('.live-responses-table tbody .response-col_status').innerText"
        )
        assert status.startswith("200")
        window.screenshot(folder / "shown.png")
        window.open(f"{url}/docs")
        window.await_text("This server asks for a key")
        keys.is_open = True
        window.open(f"{url}/docs")
        window.await_text("/v1/classify")
        assert window.run("return document.forms.length") == 0


def _offer(window: Browser, key: str) -> None:
    window.await_that("return !document.querySelector('#key-form').hidden")
    window.type("#key", key)
    window.click("#key-form button")


def _execute(window: Browser, path: str) -> None:
    """Open the operation GET `path`, and press both of Swagger UI's buttons."""
    window.run(
        """
        window.block = [...document.querySelectorAll(".opblock-get")].find(
            (one) => one.querySelector("[data-path]").dataset.path === arguments[0]);
        block.querySelector(".opblock-summary-control").click();
        """,
        path,
    )
    for button in (".try-out__btn", ".execute"):
        window.await_that("return block.querySelector(arguments[0]) !== null", button)
        window.run("block.querySelector(arguments[0]).click()", button)
