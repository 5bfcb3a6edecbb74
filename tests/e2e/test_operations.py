"""Operating a real server: health, metrics, ports, a killed replica, stopping and starting, refused starts."""

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.server_process import free_port
from server.client import AdaKron, Result
from tests.e2e.cluster import PROJECT, Server, Signature

Make = Callable[..., Signature]


def replica_pids(server: Server) -> list[int]:
    return [pid for pid, command in server.processes().items() if command.startswith("ray::ServeReplica:clf")]


def replicas_in_metrics(client: httpx.Client) -> set[str]:
    text = client.get("/metrics").text
    return {part.partition('"')[0] for part in text.split('replica="')[1:]}


def test_health_readiness_and_documents_answer(server: Server) -> None:
    with server.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        assert client.get("/docs").status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/classify", "/v1/adapters/{name}"} <= paths.keys()


def test_request_id_stands_once_in_the_reply(server: Server) -> None:
    with server.client() as client:
        for path in ("/healthz", "/v1/adapters"):
            assert client.get(path, headers={"x-request-id": "mine-1"}).headers.get_list("x-request-id") == ["mine-1"]
            assert len(client.get(path).headers.get_list("x-request-id")) == 1


def test_metrics_cover_every_replica(server: Server) -> None:
    with server.client() as client:
        replicas = replicas_in_metrics(client)
    assert "admin" in replicas
    assert len(replicas) == 3  # and two of the data plane


def test_start_printed_what_an_operator_needs_and_nothing_of_ray(server: Server) -> None:
    lines = server.log.read_text().splitlines()
    assert any(line.startswith(f"Listening on {server.url}") for line in lines)
    assert any(line.startswith("Try:") and "curl" in line for line in lines)
    known = ("Checking", "Starting", "Listening", "Runs:", "Keys:", "Try:", "Logs:", "Stop:", "Stopping")
    refused = '{"event": "request", "level": "warning"'  # calls of other tests that were turned away
    assert [line for line in lines if not line.startswith((*known, refused))] == []


def test_service_listens_on_loopback_alone(server: Server) -> None:
    """Ray's own ports are another matter: it opens those on all interfaces, behind a token."""
    ours = {server.port, 8500, *range(30_000, 30_010)}
    found = {(host, port) for host, port in listening() if port in ours}
    assert ("127.0.0.1", server.port) in found
    assert {host for host, _ in found} == {"127.0.0.1"}


def listening() -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that listens on this machine; IPv6 addresses as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, port = local.partition(":")
            if state == "0A":
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add((host, int(port, 16)))
    return found


def test_state_is_private_to_its_owner(server: Server) -> None:
    assert stat.S_IMODE(server.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.state_dir / "ray_token").stat().st_mode) == 0o600


def test_second_server_on_the_same_state_is_refused_in_one_line(server: Server) -> None:
    done = subprocess.run(
        server.command(f"--port={free_port()}"),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another server is using the state folder" in done.stderr
    assert server.classify("nobody").status_code == 404


def test_client_notices_nothing_of_a_killed_replica(server: Server, make: Make) -> None:
    mine = make(30)
    is_over = threading.Event()

    def texts() -> Iterator[str]:
        while not is_over.is_set():
            time.sleep(0.002)
            yield "x"

    with AdaKron(server.url) as client, ThreadPoolExecutor(1) as pool:
        client.put("ops/client", mine.adapter.to_bytes())
        outcomes = pool.submit(client.classify_many, texts(), "ops/client", concurrency=2)
        try:
            time.sleep(1)
            victim = replica_pids(server)[0]
            os.kill(victim, signal.SIGKILL)
            deadline_s = time.monotonic() + 60
            while victim in replica_pids(server) or len({server.info()["replica"] for _ in range(10)}) < 2:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
        finally:
            is_over.set()
        found = outcomes.result(60)
    assert len(found) > 128
    assert {(type(row), row.adapter) for row in found} == {(Result, "ops/client")}
    assert all(isinstance(row, Result) and mine.made({"label": row.label, "score": row.score}) for row in found)


def test_killed_replica_is_replaced_and_the_new_one_holds_everything(server: Server, make: Make) -> None:
    mine = make(31)
    server.put("ops/killed", mine.adapter)
    before = {server.info()["replica"] for _ in range(20)}
    victim = replica_pids(server)[0]
    os.kill(victim, signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    failures = 0
    while True:
        try:
            status = server.classify("ops/killed", ["x"]).status_code
        except httpx.RemoteProtocolError:  # it was in flight on the victim, and past what the proxy can send again
            status = 503
        failures += status != 200
        assert status in (200, 500, 503)
        pids = replica_pids(server)
        if len(pids) == 2 and victim not in pids and len({server.info()["replica"] for _ in range(10)} - before) == 1:
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert failures <= 2
    for _ in range(20):
        assert mine.made(server.classify("ops/killed", ["x"]).json()["results"][0])
    with server.client() as client:
        assert len(client.get("/v1/adapters/ops/killed").json()["resident"]) == 2


@pytest.fixture(scope="module")
def kept(cluster: Server, make: Make) -> list[dict[str, Any]]:
    """The listing before the stop: one adapter rolled back to version 1 of 2, one deleted, and what others left."""
    cluster.ensure_running()
    cluster.put("ops/stays", make(32).adapter)
    cluster.put("ops/stays", make(33).adapter)
    cluster.put("ops/gone", make(34).adapter)
    with cluster.client() as client:
        client.post("/v1/adapters/ops/stays/activate", json={"version": 1})
        client.delete("/v1/adapters/ops/gone")
        listed: list[dict[str, Any]] = client.get("/v1/adapters?limit=1000").json()["adapters"]
    return listed


def test_stopped_server_exits_with_0_and_leaves_no_process(server: Server, kept: list[dict[str, Any]]) -> None:
    processes = server.processes()
    assert len(processes) > 5
    assert server.stop() == 0
    assert [command for pid, command in processes.items() if is_running(pid)] == []
    assert server.port not in {port for _, port in listening()}


def test_start_that_is_interrupted_exits_with_0_and_leaves_no_process(cluster: Server) -> None:
    if cluster.process is not None:
        cluster.stop()
    cluster.wait_for_line("Starting 2 replicas", cluster.launch())
    deadline_s = time.monotonic() + 60
    while not any("raylet" in command for command in cluster.processes().values()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    processes = cluster.processes()
    assert cluster.stop() == 0
    assert [command for pid, command in processes.items() if is_running(pid)] == []


def test_restarted_server_serves_what_was_acknowledged(server: Server, kept: list[dict[str, Any]], make: Make) -> None:
    assert make(32).made(server.classify("ops/stays", ["x"]).json()["results"][0])
    assert make(33).made(server.classify("ops/stays@2", ["x"]).json()["results"][0])
    assert server.classify("ops/gone").status_code == 404
    with server.client() as client:
        again = client.get("/v1/adapters?limit=1000").json()["adapters"]
    assert [lasting(adapter) for adapter in again] == [lasting(adapter) for adapter in kept]
    assert server.put("ops/gone", make(34).adapter).json()["version"] == 2


def lasting(adapter: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in adapter.items() if key not in ("resident", "requests", "last_used_at")}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
