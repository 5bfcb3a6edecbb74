"""A real browser, headless, driven by the W3C's WebDriver protocol over HTTP: chromedriver speaks it, httpx is enough.

Skips the test where Debian's `chromium` and `chromium-driver`, or what they are called elsewhere, are not installed.
"""

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

READY_WITHIN_S = 60.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what WebDriver calls a reference to an element


class Browser:
    """One window."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._post("/url", url=url)

    def run(self, script: str, *arguments: object) -> Any:
        """What the body of a JavaScript function returns; a promise is awaited."""
        return self._post("/execute/sync", script=script, args=arguments)

    def type(self, css: str, text: str) -> None:
        element = self._post("/element", using="css selector", value=css)[_ELEMENT]
        self._post(f"/element/{element}/clear")
        self._post(f"/element/{element}/value", text=text)

    def click(self, css: str) -> None:
        element = self._post("/element", using="css selector", value=css)[_ELEMENT]
        self._post(f"/element/{element}/click")

    def resize(self, width: int, height: int) -> None:
        self._post("/window/rect", width=width, height=height)

    def await_text(self, text: str) -> None:
        """Wait until the page shows this."""
        self.await_that("return document.body.innerText.includes(arguments[0])", text)

    def await_that(self, script: str, *arguments: object) -> None:
        """Wait until the script returns something true."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not self.run(script, *arguments):
            assert time.monotonic() < deadline_s, (script, arguments, self.run("return document.body.innerText"))
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._session.get("screenshot").json()["value"]))

    def _post(self, path: str, **body: object) -> Any:
        reply = self._session.post(path.removeprefix("/"), json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()["value"]


@contextmanager
def browser(port: int, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A window of a browser with a profile of its own; `port` is free, for its driver."""
    driver, program = _found("chromedriver"), _found("chromium", "chromium-browser", "google-chrome")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]
    wanted = {"alwaysMatch": {"goog:chromeOptions": {"binary": program, "args": flags}}}
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=READY_WITHIN_S, trust_env=False) as client:
            _wait(lambda: client.get("/status").json()["value"]["ready"])
            begun = client.post("/session", json={"capabilities": wanted})
            assert begun.status_code == 200, begun.text
            session = f"/session/{begun.json()['value']['sessionId']}"
            client.base_url = httpx.URL(f"http://127.0.0.1:{port}{session}/")
            try:
                yield Browser(client)
            finally:
                client.delete(f"http://127.0.0.1:{port}{session}")
    finally:
        process.terminate()
        process.wait()


def _found(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is not installed (Debian: apt install chromium chromium-driver)")


def _wait(is_ready: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if is_ready():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline_s, "chromedriver does not answer"
        time.sleep(0.05)
