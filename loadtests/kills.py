"""Killing a whole server while adapters are registered: `python -m loadtests.kills --n 200 --state DIR`.

Clients register and activate signature adapters on a server of this program's own, which is killed with everything
below it at a random moment and started again on the same state. What its backbone computes is beside the point: by
default it is a tiny one of random weights in a single replica, so that a start is short. Then, for every name:

    every version that was acknowledged is listed with its sha256, and answers under it
    every version that is listed was sent, and answers: nothing is half-visible
    the version that answers the bare name is the one last acknowledged, or one that was under way

Progress is kept in --state: an interrupted run is taken up again there.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.process_tree import kill_tree
from loadtests.server_process import READY_WITHIN_S, launch, wait_until_ready

CLIENTS = 3
LONGEST_LIFE_S = 4.0
BACKBONE = "random:tiny"
BOTTLENECK = 1024  # with the tiny backbone an artefact of 600 kB, as large as real ones: uploads are killed half-way
TEXT = "Whatever this says, the label is known."


class BrokenPromiseError(Exception):
    """What the restarted server shows is not what it acknowledged; the message says where."""


@dataclass
class Ledger:
    """What one name was sent and told. sent: sha256s; acknowledged: version -> sha256; active: candidates now."""

    sent: set[str] = field(default_factory=set)
    acknowledged: dict[int, str] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)

    def begin(self, sha256: str) -> None:
        """A change was sent that may make this the active one, whether or not we hear of it."""
        self.sent.add(sha256)
        self.active.add(sha256)

    def acknowledge(self, version: int, sha256: str) -> None:
        """The server said that this version is kept and active."""
        self.acknowledged[version] = sha256
        self.active = {sha256}


class Crew:
    """Clients that change adapters until the server goes away, each its own name, one change at a time."""

    def __init__(self, url: str, maker: AdapterMaker, ledgers: dict[str, Ledger], rng: random.Random) -> None:
        self._url = url
        self._maker = maker
        self._threads = [
            threading.Thread(target=self._work, args=(name, ledger, random.Random(rng.random())))
            for name, ledger in ledgers.items()
        ]
        self.faults: list[str] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for all; they end with the server."""
        for thread in self._threads:
            thread.join()

    def _work(self, name: str, ledger: Ledger, rng: random.Random) -> None:
        with httpx.Client(base_url=f"{self._url}/v1/adapters", timeout=30.0, trust_env=False) as client:
            try:
                while True:
                    self._change(client, name, ledger, rng)
            except httpx.TransportError:
                return  # the server was killed

    def _change(self, client: httpx.Client, name: str, ledger: Ledger, rng: random.Random) -> None:
        if ledger.acknowledged and rng.random() < 0.3:
            version, sha256 = rng.choice(sorted(ledger.acknowledged.items()))
            ledger.begin(sha256)
            reply = client.post(f"/{name}/activate", json={"version": version})
        else:
            artefact = self._maker.make(rng.randrange(self._maker.count))
            sha256 = artefact.signature.sha256
            ledger.begin(sha256)
            reply = client.put(f"/{name}", content=artefact.data)
        if reply.status_code in (200, 201, 202):
            ledger.acknowledge(reply.json()["version"], sha256)
        elif reply.status_code not in (500, 503):  # what a dying server and the proxy before it may still say
            self.faults.append(f"{name}: unexpected {reply.status_code} {reply.text[:200]}")


def check(client: httpx.Client, ledgers: dict[str, Ledger]) -> int:
    """Hold a server to the ledgers; returns how many versions answered. Raises BrokenPromiseError."""
    answered = 0
    for name, ledger in ledgers.items():
        reply = client.get(f"/v1/adapters/{name}")
        if reply.status_code == 404 and not ledger.acknowledged:
            continue
        if reply.status_code != 200:
            raise BrokenPromiseError(f"{name} was acknowledged, and the server answers {reply.status_code}")
        try:
            listed = {row["version"]: row["sha256"] for row in reply.json()["versions"]}
        except (ValueError, KeyError) as error:
            raise BrokenPromiseError(f"{name}: a 200 that says nothing: {reply.headers} {reply.text[:200]}") from error
        for version, sha256 in ledger.acknowledged.items():
            if listed.get(version) != sha256:
                raise BrokenPromiseError(
                    f"{name}@{version} was acknowledged as {sha256[:12]}; it is {listed.get(version)}"
                )
        for version, sha256 in listed.items():
            if sha256 not in ledger.sent:
                raise BrokenPromiseError(f"{name}@{version} has bytes that nobody sent")
            _expect(client, f"{name}@{version}", {sha256})
            answered += 1
        answering = _expect(client, name, ledger.active)
        ledger.acknowledged, ledger.active = dict(listed), {answering}
    return answered


def _expect(client: httpx.Client, reference: str, sha256s: set[str]) -> str:
    reply = client.post("/v1/classify", json={"adapter": reference, "inputs": TEXT})
    found: dict[str, Any] = reply.json() if reply.status_code == 200 else {}
    if found.get("sha256") not in sha256s:
        raise BrokenPromiseError(f"{reference}: expected one of {sorted(sha256s)}; got {reply.status_code} {found}")
    return str(found["sha256"])


def run(trials: int, folder: Path, *, backbone: str = BACKBONE, replicas: int = 1, seed: int = 0) -> dict[str, int]:
    """So many kills. Returns what was counted: kills, processes killed, versions that answered afterwards.

    Raises BrokenPromiseError, ServerFailedError.
    """
    progress = folder / "progress.json"
    kept = json.loads(progress.read_text()) if progress.exists() else None
    counted = kept["counted"] if kept else {"kills": 0, "processes": 0, "answered": 0}
    ledgers = {f"kills/n{n}": Ledger() for n in range(CLIENTS)}
    for name, saved in (kept["ledgers"] if kept else {}).items():
        acknowledged = {int(version): sha256 for version, sha256 in saved["acknowledged"].items()}
        ledgers[name] = Ledger(set(saved["sent"]), acknowledged, set(saved["active"]))
    rng = random.Random(seed + counted["kills"])
    while True:
        server, url = _start(folder, backbone, replicas)
        try:
            with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
                counted["answered"] += check(client, ledgers)
                if counted["kills"] >= trials:
                    _tidy(client, ledgers)
                    return counted
                maker = AdapterMaker(client.get("/v1/info").raise_for_status().json(), bottleneck=BOTTLENECK)
            crew = Crew(url, maker, ledgers, rng)
            crew.start()
            time.sleep(rng.uniform(0.1, LONGEST_LIFE_S))
        finally:
            processes = kill_tree(server.pid)
            server.wait()
        crew.join()
        if crew.faults:
            raise BrokenPromiseError(crew.faults[0])
        counted["kills"] += 1
        counted["processes"] += processes
        saved_ledgers = {
            name: {"sent": sorted(ledger.sent), "acknowledged": ledger.acknowledged, "active": sorted(ledger.active)}
            for name, ledger in ledgers.items()
        }
        progress.write_text(json.dumps({"counted": counted, "ledgers": saved_ledgers}))


def _start(folder: Path, backbone: str, replicas: int) -> tuple["subprocess.Popen[bytes]", str]:
    log, no_adapters = folder / "server.log", folder / "no-adapters"
    no_adapters.mkdir(exist_ok=True)
    settings = {"backbone": backbone, "adapters_dir": no_adapters}
    server, url = launch(log, replicas=replicas, state_dir=folder / "state", settings=settings)
    try:
        wait_until_ready(server, url, log, READY_WITHIN_S)
    except BaseException:
        kill_tree(server.pid)
        server.wait()
        raise
    return server, url


def _tidy(client: httpx.Client, ledgers: dict[str, Ledger]) -> None:
    for name in ledgers:
        client.delete(f"/v1/adapters/{name}")


def main() -> int:
    """Run from the command line. Returns 0, or 1 with the broken promise on stderr."""
    parser = argparse.ArgumentParser(description="Kill a server while adapters are registered, again and again.")
    parser.add_argument("--n", type=int, default=200, help="kills")
    parser.add_argument("--state", type=Path, required=True, help="folder to keep, and to go on from")
    parser.add_argument("--backbone", default=BACKBONE, help=f"default: {BACKBONE}")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    try:
        counted = run(options.n, options.state, backbone=options.backbone, replicas=options.replicas, seed=options.seed)
    except BrokenPromiseError as fault:
        print(f"broken: {fault}", file=sys.stderr)
        return 1
    print(json.dumps(counted | {"seconds": round(time.monotonic() - started_s, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
