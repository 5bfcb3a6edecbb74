"""Registering, asking and deleting, again and again: `python -m loadtests.cycles --n 10000`.

A server that loads must also let go. After a warm-up the processes of the server are measured; after all cycles, and
a moment without requests, they may not have grown:

    memory               at most max(64 MiB, 5 %) more in each replica and in the admin plane
    descriptors, sockets, threads    no more than pools of connections and threads, proxy and Ray may begin to keep
    leases               0 in every replica, as GET /metrics shows
    names, files         none left of those that were registered

Every cycle registers new bytes under its client's name, asks for them on both replicas (most likely), and deletes them.
Progress is kept in --out, piece by piece. A run that is interrupted goes on there on a new server, which is warmed up
again: growth is judged within each server's life.

Exit codes: 0 nothing grew; 1 something did, or a reply was wrong; 2 it could not run.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from loadtests.adapter_maker import AdapterMaker
from loadtests.artefacts import ArtefactMaker
from loadtests.footprint import MIB, Process, growth_faults, processes
from loadtests.journal import Journal, OtherRunError
from loadtests.server_process import COMMAND, RunningServer, ServerFailedError, running_server

BACKBONE = "random:tiny"
BOTTLENECK = 256  # 150 kB an artefact on the tiny backbone: what is not let go soon adds up
REPLICAS = 2
CLIENTS = 2
WARM_UP = 500
PIECE = 500
SETTLE_S = 3.0
LEASES_WITHIN_S = 10.0
TIMEOUT_S = 30.0
_NAMES = tuple(f"cycles/n{client}" for client in range(CLIENTS))
TEXT = "Whatever this says, the label is known."


class Cycles:
    """Cycles against one running server.

    judged  which of its processes must not grow
    """

    def __init__(
        self,
        server: RunningServer,
        maker: ArtefactMaker,
        journal: Journal,
        *,
        judged: Callable[[Process], bool] = lambda process: process.is_ours,
    ) -> None:
        self._server = server
        self._maker = maker
        self._journal = journal
        self._judged = judged
        self._lock = threading.Lock()
        self._serial = 0
        self._files = self._stored_files()
        self.before: dict[int, Process] = {}
        self.after: dict[int, Process] = {}

    def warm_up(self, cycles: int) -> None:
        """Run cycles that do not count, and take the measure that later ones are held against."""
        self._many(cycles)
        self.before = self._measure()
        if not any(self._judged(process) for process in self.before.values()):
            raise ServerFailedError("found no process of the server to judge")

    def run(self, cycles: int) -> None:
        """So many cycles more, then judge."""
        self._many(cycles)
        self._journal.counts["cycles"] += cycles
        self.after = self._measure()
        judged = [pid for pid, process in self.before.items() if self._judged(process)]
        for words in growth_faults(self.before, self.after, judged):
            self._journal.fault("growth", words)
        for words in self._left_behind():
            self._journal.fault("left behind", words)

    def _many(self, cycles: int) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(self._some, client, cycles) for client in range(CLIENTS)]:
                done.result()

    def _some(self, client: int, cycles: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=TIMEOUT_S, trust_env=False) as http:
            for _ in range(client, cycles, CLIENTS):
                self._cycle(http, _NAMES[client])

    def _cycle(self, http: httpx.Client, name: str) -> None:
        with self._lock:
            serial, self._serial = self._serial, (self._serial + 1) % self._maker.count
        artefact = self._maker.make(serial)
        path = f"/v1/adapters/{name}"
        self._expect(http.put(path, content=artefact.data), 201, f"register {name}")
        for _ in range(REPLICAS):
            reply = http.post("/v1/classify", json={"adapter": name, "inputs": [TEXT]})
            self._expect(reply, 200, f"ask {name}")
            if reply.status_code == 200 and (
                (reply.json()["sha256"], reply.json()["results"][0]["label"])
                != (artefact.signature.sha256, artefact.signature.label)
            ):
                self._fault("wrong", f"{name} answered with what it is not: {reply.text[:200]}")
        self._expect(http.delete(path), 200, f"delete {name}")

    def _expect(self, reply: httpx.Response, status: int, what: str) -> None:
        if reply.status_code != status:
            self._fault("fault", f"{what}: expected {status}; got {reply.status_code} {reply.text[:200]}")

    def _fault(self, kind: str, words: str) -> None:
        with self._lock:
            self._journal.fault(kind, words)

    def _measure(self) -> dict[int, Process]:
        time.sleep(SETTLE_S)
        return processes(self._server.pid)

    def _left_behind(self) -> list[str]:
        with httpx.Client(base_url=self._server.url, timeout=TIMEOUT_S, trust_env=False) as http:
            found = {name: http.get(f"/v1/adapters/{name}").status_code for name in _NAMES}
            left = [f"{name} answers {status}" for name, status in found.items() if status != 404]
            held = leases(http)
            deadline_s = time.monotonic() + LEASES_WITHIN_S
            while any(held.values()) and time.monotonic() < deadline_s:
                time.sleep(0.2)
                held = leases(http)
        if not held:
            left.append("GET /metrics shows no adakron_leases")
        left += [f"replica {replica} holds {count:g} leases" for replica, count in held.items() if count]
        files = self._stored_files() - self._files
        return left + ([f"{files} stored files are left"] if files else [])

    def _stored_files(self) -> int:
        return sum(path.is_file() for path in (self._server.state_dir / "blobs").rglob("*"))


def leases(http: httpx.Client) -> dict[str, float]:
    """Replica -> leases held, from GET /metrics."""
    found = {}
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("adakron_leases{"):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('replica="')[2].partition('"')[0]] = float(value)
    return found


def run(cycles: int, journal: Journal, log: Path, *, backbone: str, command: Sequence[str] = COMMAND) -> Cycles | None:
    """Cycles until `cycles` are in the journal, on one server; None if they were there already.

    Raises ServerFailedError, httpx.HTTPError.
    """
    if journal.counts["cycles"] >= cycles:
        return None
    settings = {"backbone": backbone, "adapters_dir": log.parent}
    with running_server(log, REPLICAS, settings=settings, command=command) as server:
        info = httpx.get(f"{server.url}/v1/info", trust_env=False).raise_for_status().json()
        work = Cycles(server, AdapterMaker(info, bottleneck=BOTTLENECK), journal)
        work.warm_up(min(WARM_UP, cycles))
        while (left := cycles - journal.counts["cycles"]) > 0 and not journal.faults:
            started_s = time.monotonic()
            work.run(min(left, PIECE))
            journal.seconds += time.monotonic() - started_s
            journal.save(processes=table(work.before, work.after).splitlines())
            ours = sum(p.memory_bytes for p in work.after.values() if p.is_ours)
            print(f"{journal.counts['cycles']} cycles, {ours / MIB:.0f} MiB in replicas and admin", flush=True)
        return work


def table(before: dict[int, Process], after: dict[int, Process]) -> str:
    """Every process that was there before and after, ours first."""
    lines = ["| process | MiB before | MiB after | descriptors | sockets | threads |", "|" + " --- |" * 6]
    for pid, old in sorted(before.items(), key=lambda item: (not item[1].is_ours, item[1].role, item[0])):
        if (new := after.get(pid)) is not None:
            lines.append(
                f"| {old.role} | {old.memory_bytes / MIB:.1f} | {new.memory_bytes / MIB:.1f} "
                f"| {old.descriptors} to {new.descriptors} | {old.sockets} to {new.sockets} "
                f"| {old.threads} to {new.threads} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cycles", description="Register and delete adapters, and see that nothing grows."
    )
    parser.add_argument("--n", type=int, default=10_000, help="cycles (default: 10000)")
    parser.add_argument("--backbone", default=BACKBONE, help=f"default: {BACKBONE}")
    parser.add_argument("--out", type=Path, help="JSON file of the progress and the result")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="adakron-cycles-") as folder:
        try:
            journal = Journal(options.out, {"command": "cycles", "backbone": options.backbone})
            work = run(options.n, journal, Path(folder) / "server.log", backbone=options.backbone)
        except (OtherRunError, ServerFailedError, httpx.HTTPError) as error:
            print(f"could not run: {error}", file=sys.stderr)
            return 2
    if work is not None:
        print(table(work.before, work.after))
    print(f"{journal.counts['cycles']} cycles in {journal.seconds:.0f} s, {len(journal.faults)} faults")
    for words in journal.faults:
        print(words, file=sys.stderr)
    return 1 if journal.faults else 0


if __name__ == "__main__":
    sys.exit(main())
