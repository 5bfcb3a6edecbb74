"""The judge of killed servers: right ones pass, and each broken promise is found; nobody else's process is touched."""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from loadtests.kills import BrokenPromiseError, Ledger, check
from loadtests.process_tree import descendants, kill_tree

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Server:
    """What a restarted server would show: versions by name, and which is active."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[int, str]] = {"n": {1: A, 2: B}}
        self.active = {"n": 2}
        self.broken: set[str] = set()

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            name = request.url.path.removeprefix("/v1/adapters/")
            if name not in self.versions:
                return httpx.Response(404)
            rows = [{"version": version, "sha256": sha256} for version, sha256 in self.versions[name].items()]
            return httpx.Response(200, json={"versions": rows})
        name, _, version = json.loads(request.content)["adapter"].partition("@")
        sha256 = self.versions[name][int(version) if version else self.active[name]]
        return httpx.Response(503) if sha256 in self.broken else httpx.Response(200, json={"sha256": sha256})

    def check(self, **ledgers: Ledger) -> int:
        with httpx.Client(transport=httpx.MockTransport(self.handle), base_url="http://test") as client:
            return check(client, ledgers)


def ledger(**changes: Any) -> Ledger:
    return Ledger(**{"sent": {A, B}, "acknowledged": {1: A, 2: B}, "active": {B}, **changes})


def test_server_that_shows_what_it_acknowledged_passes() -> None:
    assert Server().check(n=ledger(), never=Ledger(sent={C})) == 2


def test_change_under_way_may_or_may_not_be_there() -> None:
    server, mine = Server(), ledger(sent={A, B, C}, active={B, C})
    assert server.check(n=mine) == 2
    assert mine.active == {B}
    server.versions["n"][3], server.active["n"] = C, 3
    mine = ledger(sent={A, B, C}, active={B, C})
    assert server.check(n=mine) == 3
    assert (mine.acknowledged, mine.active) == ({1: A, 2: B, 3: C}, {C})


def test_lost_name_is_found() -> None:
    server = Server()
    server.versions.clear()
    with pytest.raises(BrokenPromiseError, match="answers 404"):
        server.check(n=ledger())


def test_200_that_shows_no_versions_is_found() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="# HELP python_info Python platform information")

    with (
        httpx.Client(transport=httpx.MockTransport(handle), base_url="http://test") as client,
        pytest.raises(BrokenPromiseError, match="n: a 200 that says nothing"),
    ):
        check(client, {"n": ledger()})


def test_lost_version_is_found() -> None:
    server = Server()
    del server.versions["n"][1]
    with pytest.raises(BrokenPromiseError, match="n@1 was acknowledged"):
        server.check(n=ledger())


def test_version_that_nobody_sent_is_found() -> None:
    server = Server()
    server.versions["n"][3] = C
    with pytest.raises(BrokenPromiseError, match="nobody sent"):
        server.check(n=ledger())


def test_version_that_is_listed_and_does_not_answer_is_found() -> None:
    server = Server()
    server.broken = {A}
    with pytest.raises(BrokenPromiseError, match="n@1: expected"):
        server.check(n=ledger())


def test_lost_activation_is_found() -> None:
    server = Server()
    server.active["n"] = 1
    with pytest.raises(BrokenPromiseError, match="n: expected"):
        server.check(n=ledger())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tree_is_killed_whole_and_nothing_beside_it() -> None:
    child = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(flush=True)\ntime.sleep(60)"
    )
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    parent = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    below = descendants(parent.pid)
    assert len(below) == 1
    assert kill_tree(parent.pid) == 2
    assert parent.wait() == -9
    assert not descendants(parent.pid)
    assert beside.poll() is None
    beside.kill()
    beside.wait()
    parent.stdout.close()
