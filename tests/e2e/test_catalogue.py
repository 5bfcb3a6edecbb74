"""The catalogue on a real cluster: bulk, splits, shadows, the way back of an artefact, and the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.cluster import PROJECT, Server, Signature

Make = Callable[..., Signature]
ROOT = "/v1/adapters"


def test_bulk_is_served_by_every_replica_when_it_returns(server: Server, make: Make) -> None:
    marks = {f"many/n{mark}": make(mark) for mark in range(1, 21)}
    parts = [(name, ("file", mine.adapter.to_bytes())) for name, mine in marks.items()]
    with server.client() as client:
        reply = client.post(f"{ROOT}/bulk", files=[*parts, ("many/bad", ("file", b"no artefact"))])
    body = reply.json()
    assert (reply.status_code, body["registered"], body["failed"], body["lagging"]) == (200, 20, 1, [])
    for _ in range(3):
        for name, mine in marks.items():
            assert mine.made(server.classify(name, ["x"]).json()["results"][0])
    assert server.classify("many/bad").status_code == 404


def test_split_is_sticky_on_whichever_replica_and_shadow_is_only_counted(server: Server, make: Make) -> None:
    old, new, shadow = make(1), make(2), make(3)
    server.put("canary/x", old.adapter)
    for mine in (new, shadow):
        server.put("canary/x", mine.adapter, params={"activate": "false"})
    with server.client() as client:
        reply = client.put(f"{ROOT}/canary/x/split", json={"weights": {"1": 50, "2": 50}, "shadow": 3})
        assert (reply.status_code, reply.json()["lagging"]) == (200, [])
    seen: dict[str, set[int]] = {str(key): set() for key in range(12)}
    for _ in range(4):
        for key, versions in seen.items():
            with server.client(headers={"x-route-key": key}) as client:
                answer = client.post("/v1/classify", json={"adapter": "canary/x", "inputs": ["x"]}).json()
            versions.add(answer["version"])
            assert {1: old, 2: new}[answer["version"]].made(answer["results"][0])
    assert all(len(versions) == 1 for versions in seen.values())
    assert {version for versions in seen.values() for version in versions} == {1, 2}
    assert make(2).made(server.classify(f"canary/x@sha256:{new.adapter.sha256}", ["x"]).json()["results"][0])
    deadline_s = time.monotonic() + 20
    while sum(shown(server, "canary/x")["shadow_rows"].values()) < 48:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    counted = shown(server, "canary/x")["shadow_rows"]
    # Marks 1 and 3 give one label, mark 2 the other.
    assert counted["same"] > 0
    assert counted["different"] > 0


def test_min_generation_is_met_at_once_after_a_change(server: Server, make: Make) -> None:
    generation = server.put("gen/x", make(5).adapter).json()["generation"]
    for _ in range(6):
        assert server.classify("gen/x", ["x"], min_generation=generation).status_code == 200
    assert server.classify("gen/x", ["x"], min_generation=generation + 1000).status_code == 503


def test_command_line_manages_a_running_server(server: Server, make: Make, tmp_path: Path) -> None:
    one, two = make(6).adapter, make(7).adapter
    one.write(tmp_path / "dir" / "cli" / "x")

    def adakron(*words: object) -> str:
        environment = {**os.environ, "ADAKRON_URL": server.url, "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-c", "import sys; from server.cli import main; sys.exit(main())", *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert "1 changed" in adakron("sync", "dir", "--apply")
    two.write(tmp_path / "dir" / "cli" / "x")
    assert "cli/x@2 is active" in adakron("push", "dir/cli/x", "cli/x")
    assert "cli/x@1 is active" in adakron("rollback", "cli/x")
    adakron("export", "cli/x", "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == one.to_bytes()
    assert "removed cli/x" in adakron("rm", "cli/x")


def shown(server: Server, name: str) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.get(f"{ROOT}/{name}").json()
        return found
