"""Calls under way when a replica dies: what the proxy counts, and answers that are not as they should be."""

import subprocess
import sys
import time
from random import Random

import httpx
import pytest

from loadtests.adapter_maker import AdapterMaker
from loadtests.journal import Journal
from loadtests.replica_kills import ADAPTERS, Killing, has_sockets, resent, table
from loadtests.server_process import RunningServer

STATISTICS = """
haproxy_backend_retry_warnings_total{proxy="http-admin"} 9
haproxy_backend_retry_warnings_total{proxy="http-clf"} 3
haproxy_backend_redispatch_warnings_total{proxy="http-clf"} 2
haproxy_server_retry_warnings_total{proxy="http-clf",server="x"} 3
"""
INFO = {
    "engine": {
        "backbone": "tiny",
        "hidden_size": 61,
        "num_layers": 1,
        "fingerprint": dict.fromkeys(("config_sha256", "weights_sha256", "tokenizer_sha256"), "0" * 64),
    }
}


def test_what_the_proxy_sends_again_is_read_from_its_statistics() -> None:
    assert resent(STATISTICS) == 5
    assert resent("") == 0


def test_a_process_has_sockets_until_its_last_thread_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert has_sockets(child.pid)
    child.kill()
    deadline_s = time.monotonic() + 10
    while has_sockets(child.pid) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert not has_sockets(child.pid)  # nobody has waited for it yet
    child.wait()
    assert not has_sockets(child.pid)


@pytest.fixture
def maker() -> AdapterMaker:
    return AdapterMaker(INFO)


class Replies:
    """Right answers, unless `status` says otherwise or `swap` gives those of the adapter next in number."""

    def __init__(self, maker: AdapterMaker) -> None:
        self.maker = maker
        self.status = 200
        self.swap = 0

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(201)
        if self.status == 0:
            raise httpx.RemoteProtocolError("gone")
        items = httpx.Response(200, content=request.content).json()["items"]
        numbers = [int(item["adapter"].removeprefix("kills/n")) + self.swap for item in items]
        made = [self.maker.make(number).signature for number in numbers]
        return httpx.Response(self.status, json={"results": [{"sha256": m.sha256, "label": m.label} for m in made]})


@pytest.mark.parametrize(
    ("status", "swap", "fault", "wrong"),
    [(200, 0, None, 0), (503, 0, "HTTP 503", 0), (0, 0, "RemoteProtocolError", 0), (200, 1, None, 2)],
)
async def test_answers_are_judged(
    maker: AdapterMaker, tmp_path, status: int, swap: int, fault: str | None, wrong: int
) -> None:
    replies, journal = Replies(maker), Journal(None, {})
    async with httpx.AsyncClient(transport=httpx.MockTransport(replies.handle), base_url="http://test") as http:
        killing = Killing(RunningServer("http://test", 0, tmp_path), http, journal, Random(0))
        await killing.register(maker)
        assert len(killing._adapters) == ADAPTERS
        replies.status, replies.swap = status, swap
        assert await killing._ask(["kills/n1", "kills/n2"]) == fault
        killing.recovered_s = [2.0, 4.0]
        assert "median 3.0, worst 4.0" in table(journal, killing)
    assert journal.counts["wrong"] == wrong
