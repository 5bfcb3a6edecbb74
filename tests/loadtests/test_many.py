"""Very many adapters against a stand-in: what found no time is sent again, what is not as sent is found."""

import hashlib
import json
import re
from typing import Any

import httpx
import pytest

from loadtests import many
from loadtests.artefacts import SignatureMaker
from loadtests.many import NotRegisteredError, ask, listed, name_of, register, shortfalls, table
from tests.loadtests.artefact import artefact_bytes

MAKER = SignatureMaker(artefact_bytes())


class Server:
    """Registers at most `a_call` artefacts of a call, and shows two a page."""

    def __init__(self, a_call: int = 3) -> None:
        self.a_call = a_call
        self.calls = 0
        self.adapters: dict[str, bytes] = {}

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self.handle), base_url="http://test")

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/bulk"):
            return httpx.Response(200, json={"results": self._bulk(request)})
        if request.method == "POST":
            return self._classify(json.loads(request.content)["adapter"])
        names = sorted(self.adapters)
        start = int(request.url.params.get("cursor", 0))
        entries = [{"name": name, "sha256": hashlib.sha256(self.adapters[name]).hexdigest()} for name in names]
        following = str(start + 2) if start + 2 < len(names) else None
        return httpx.Response(200, json={"adapters": entries[start : start + 2], "next": following})

    def _bulk(self, request: httpx.Request) -> list[dict[str, Any]]:
        self.calls += 1
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        results: list[dict[str, Any]] = []
        for part in request.content.split(b"--" + boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            found = re.search(rb'name="([^"]+)"', head)
            assert found
            name = found[1].decode()
            if len(results) < self.a_call:
                self.adapters[name] = data.removesuffix(b"\r\n")
                results.append({"name": name, "status": 201})
            else:
                results.append({"name": name, "status": 503, "error": {"code": "NOT_READY"}})
        return results

    def _classify(self, name: str) -> httpx.Response:
        number = int(name.removeprefix("many/n"))
        sha256 = hashlib.sha256(self.adapters[name]).hexdigest()
        label = MAKER.make(number).signature.label
        return httpx.Response(200, json={"sha256": sha256, "results": [{"label": label}]})


def test_all_are_registered_in_as_many_calls_as_it_takes() -> None:
    server = Server()
    with server.client() as http:
        assert len(register(http, MAKER, range(8))) == server.calls == 3
        there, _ = listed(http)
    assert there == {name_of(n): MAKER.make(n).signature.sha256 for n in range(8)}


def test_server_that_takes_nothing_is_not_asked_for_ever() -> None:
    with Server(a_call=0).client() as http, pytest.raises(NotRegisteredError, match="NOT_READY"):
        register(http, MAKER, range(4))


def test_answer_of_other_bytes_is_found() -> None:
    server = Server(a_call=9)
    with server.client() as http:
        register(http, MAKER, range(4))
        assert ask(http, MAKER, range(4))[1] == []
        server.adapters[name_of(2)] = server.adapters[name_of(3)]
        seconds, (words,) = ask(http, MAKER, range(4))
    assert len(seconds) == 4
    assert words.startswith(f"{name_of(2)}: expected")


def found(**changes: Any) -> dict[str, Any]:
    memory = {f"memory_{moment}_mib": {"clf": [1.0, 2.0]} for moment in ("before", "full", "started", "asked")}
    times = {"register_s": 3.0, "register_call_s": [1.0, 2.0], "list_s": 0.5, "start_s": 20.0, "start_before_s": 9.0}
    asks = {"first_ask_p50_s": 0.01, "first_ask_p99_s": 0.02}
    size = {"artefact_bytes": 50_000, "admin_peak_mib": 3.0}
    return {"adapters": 10_000, "registered_now": 10_000, **size, **times, **asks, **memory, "faults": [], **changes}


def test_late_readiness_and_faults_fall_short() -> None:
    assert shortfalls(found()) == []
    assert shortfalls(found(start_s=31.0, faults=["lost"])) == ["lost", "ready after 31.0 s; wanted 30"]


def test_table_shows_every_figure() -> None:
    lines = table(found()).splitlines()
    assert "| adapters | 10,000 of 50,000 bytes |" in lines
    assert any("20.0; before any was registered 9.0" in line for line in lines)
    assert sum("MiB" in line for line in lines) == 5
    assert many.table(found(register_call_s=[])).count("registering them") == 0
