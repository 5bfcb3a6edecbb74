"""A server with keys, as others reach it: two replicas and the admin plane, on one database."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from server.client import AccessError, AdaKron
from tests.e2e.cluster import PROJECT, Server, bearer, signature
from tests.e2e.tutorial_reader import read

KNOWN_WITHIN_S = 60.0
IN_A_ROW = 12  # calls enough to meet each of three processes: two replicas and the admin plane
KEYS: dict[str, dict[str, Any]] = {
    "all": {"scopes": ("classify", "read", "admin")},
    "classify": {"scopes": ("classify",)},
    "read": {"scopes": ("read",)},
    "acme": {"scopes": ("classify", "read", "admin"), "prefix": "acme/"},
    "limited": {"scopes": ("classify",), "rows_per_minute": 40},
    "leaving": {"scopes": ("classify", "read")},
}


@pytest.fixture(scope="module")
def keyed(cluster: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server, running, in a state folder of its own that had these keys before it was started."""
    if cluster.process is not None:  # both would listen on the ports that Ray fixes
        cluster.stop()
    folder = tmp_path_factory.mktemp("keyed")
    running = Server(folder / "state", folder / "log.txt")
    running.keys = {name: running.make_key(**what) for name, what in KEYS.items()}
    running.ensure_running()
    try:
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module", autouse=True)
def adapters(keyed: Server) -> None:
    """One of a tenant, one of another, one of nobody."""
    info = keyed.info()
    for mark, name in enumerate(("acme/spam", "globex/spam", "spam"), start=1):
        assert keyed.put(name, signature(info, mark).adapter).status_code == 201


@pytest.fixture(scope="module")
def ask(keyed: Server) -> Iterator[Callable[..., httpx.Response]]:
    """A call with the key of that name, with another, or without; each on a connection of its own."""
    with httpx.Client(base_url=keyed.url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as client:

        def send(
            key: str | None, method: str = "POST", path: str = "/v1/classify", *, adapter: str = "acme/spam", n: int = 1
        ) -> httpx.Response:
            body = {"adapter": adapter, "inputs": ["a text"] * n} if path == "/v1/classify" else None
            return client.request(method, path, headers=bearer(keyed.keys.get(key or "", key)), json=body)

        yield send


def test_the_start_says_that_keys_are_asked_for_and_shows_none(keyed: Server) -> None:
    lines = keyed.log.read_text().splitlines()
    assert any(line.startswith("Keys:") and "every call needs one" in line for line in lines)
    assert any(line.startswith("Try:") and "$ADAKRON_API_KEY" in line for line in lines)
    assert not re.search(r"ad_[0-9A-Za-z]{12}_", keyed.log.read_text())


def test_both_planes_ask_for_a_key_and_its_scope(keyed: Server, ask: Callable[..., httpx.Response]) -> None:
    for path, method, right, wrong in (
        ("/v1/classify", "POST", "classify", "read"),
        ("/v1/adapters", "GET", "read", "classify"),
        ("/v1/adapters/spam", "DELETE", None, "classify"),
    ):
        for key in (None, "ad_nobody", f"{keyed.keys['classify'][:-1]}!"):
            reply = ask(key, method, path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert ask(wrong, method, path).status_code == 403
        if right is not None:
            assert ask(right, method, path).status_code == 200


def test_health_is_public_and_the_document_is_not(
    ask: Callable[..., httpx.Response],
) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/docs/initializer.js"):
        assert ask(None, "GET", path).status_code == 200
    assert ask(None, "GET", "/openapi.json").status_code == 401
    assert ask("classify", "GET", "/openapi.json").status_code == 403
    assert ask("read", "GET", "/openapi.json").json()["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_a_tenant_sees_its_own_and_of_others_not_even_that_they_are(
    ask: Callable[..., httpx.Response],
) -> None:
    assert [row["name"] for row in ask("acme", "GET", "/v1/adapters").json()["adapters"]] == ["acme/spam"]
    assert ask("acme").status_code == 200
    for path in ("/v1/adapters/globex/spam", "/v1/adapters/spam"):
        there, never = ask("acme", "GET", path), ask("acme", "GET", f"{path}-that-never-was")
        assert (there.status_code, never.status_code) == (404, 404)
        assert there.json()["error"]["code"] == never.json()["error"]["code"]
        assert ask("acme", "DELETE", path).status_code == 404
    for name in ("globex/spam", "spam"):
        refused = ask("acme", adapter=name)
        assert refused.status_code == 404
        assert "globex" not in (refused.json()["error"]["hint"] or "")
    assert ask("acme", "GET", "/metrics").status_code == 403


def test_a_revoked_key_is_refused_by_every_process(keyed: Server, ask: Callable[..., httpx.Response]) -> None:
    assert ask("leaving").status_code == 200
    keyed.revoke(keyed.keys["leaving"])
    deadline_s = time.monotonic() + KNOWN_WITHIN_S
    for method, path in (("POST", "/v1/classify"), ("GET", "/v1/adapters")):
        in_a_row = 0
        while in_a_row < IN_A_ROW:
            in_a_row = in_a_row + 1 if ask("leaving", method, path).status_code == 401 else 0
            assert time.monotonic() < deadline_s
    assert ask("all").status_code == 200


def test_rows_are_limited_by_key_and_the_reply_says_what_is_left(
    ask: Callable[..., httpx.Response],
) -> None:
    deadline_s = time.monotonic() + KNOWN_WITHIN_S
    in_a_row = 0
    while in_a_row < IN_A_ROW:  # replicas count each other every few seconds
        told = ask("all", "GET", "/v1/info").json()["limits"]["counted"]
        in_a_row = in_a_row + 1 if told == "in memory, divided by 2 live replicas" else 0
        assert time.monotonic() < deadline_s
    left = []
    for _ in range(5):  # 50 rows, of 20 for each replica
        reply = ask("limited", n=10)
        found = re.fullmatch(r'"rows";r=(\d+);t=\d+', reply.headers["ratelimit"])
        assert found
        assert reply.headers["ratelimit-policy"] == '"rows";q=20;w=60'
        left.append(int(found[1]))
        if reply.status_code == 429:
            break
    else:
        pytest.fail(f"never refused: {left}")
    assert reply.json()["error"]["code"] == "RATE_LIMITED"
    assert 1 <= int(reply.headers["retry-after"]) <= 80
    assert left[0] == 10
    assert ask("all", n=10).status_code == 200  # another key has its own


def test_clients_send_their_key(keyed: Server) -> None:
    key = keyed.keys["all"]
    with AdaKron(keyed.url, key) as server:
        assert server.classify("a text", "acme/spam").adapter == "acme/spam"
    with AdaKron(keyed.url) as server, pytest.raises(AccessError):
        server.classify("a text", "acme/spam")
    with OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0) as client:
        assert "acme/spam" in [model.id for model in client.models.list()]
    with OpenAI(base_url=f"{keyed.url}/v1", api_key="-", max_retries=0) as client, pytest.raises(AuthenticationError):
        client.models.list()


def test_every_step_of_operate_does_what_it_shows(keyed: Server, tmp_path: Path) -> None:
    assert read("operate.md", keyed, tmp_path) > 15


def test_operate_names_metrics_that_there_are(keyed: Server) -> None:
    text = (PROJECT / "docs" / "operate.md").read_text(encoding="utf-8").partition("## What to watch")[2]
    with keyed.client() as client:
        served = client.get("/metrics").text
    for name in set(re.findall(r"`(adakron_\w+)`", text)):
        assert f"\n# TYPE {name} " in served, name
