"""Killing the writer of the catalogue, again and again: `python -m tests.crash.writer --n 1000 --state DIR`.

A child process registers, activates, splits and deletes artefacts through the real registry, catalogue and blob store,
and writes a line for every change it acknowledges. It is killed at a random moment; the parent then opens the state as
a starting server does, and holds it to what was acknowledged:

    every acknowledged change is there, in its order            nothing acknowledged is lost
    every kept version has its bytes, whole                     nothing is half-visible
    at most the change under way besides                        nothing comes from nowhere
    no other blob and no temporary file is left                 nothing stays behind

The state goes on from trial to trial, in --state where it is given: an interrupted run is taken up again there. Only
children of this process are killed, by their pid.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from server import state
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import ServerError
from server.records import Snapshot
from server.registry import Registry
from server.replica import Applied, ReplicaStatus
from server.split import Split
from tests.server.fakes import tiny_adapter

NAMES = ("a", "b", "acme/c")
LONGEST_LIFE_S = 0.2
ADAPTERS = 40


class BrokenPromiseError(AssertionError):
    """A promise was broken; the message says which."""


class _Nobody:
    """No replicas: every proof succeeds, and nobody has to follow."""

    async def prove(self, sha256: str) -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return {"no_effect": False, "examples": 0}

    async def broadcast(self, generation: int) -> list[Applied]:
        return [Applied("r1", generation, 0)]

    async def describe(self, names: object) -> list[ReplicaStatus]:
        return []


def run(trials: int, folder: Path, *, seed: int = 0, commit_first: bool = False) -> dict[str, int]:
    """So many kills. Returns what was counted: kills, acknowledged changes, and changes found though unacknowledged.

    commit_first  plants a bug: versions are committed before their bytes are stored
    Raises BrokenPromiseError.
    """
    rng = random.Random(seed)
    artefacts = [tiny_adapter(n).to_bytes() for n in range(ADAPTERS)]
    url, blobs_dir = sqlite_url(folder / "catalogue.sqlite"), folder / "blobs"
    progress = folder / "progress.json"
    counted = json.loads(progress.read_text()) if progress.exists() else {"kills": 0, "acknowledged": 0, "besides": 0}
    with state.opened(url, BlobStore(blobs_dir)) as catalogue:
        before = catalogue.snapshot()
    while counted["kills"] < trials:
        lines = _one_life(rng, url, blobs_dir, artefacts, commit_first)
        after, besides = _check(url, blobs_dir, before, lines)
        before = after
        counted = {
            "kills": counted["kills"] + 1,
            "acknowledged": counted["acknowledged"] + len(lines),
            "besides": counted["besides"] + besides,
        }
        progress.write_text(json.dumps(counted))
    return counted


def _one_life(
    rng: random.Random, url: str, blobs_dir: Path, artefacts: list[bytes], commit_first: bool
) -> list[dict[str, Any]]:
    """Fork a writer, let it live for a moment, kill it; what it acknowledged."""
    reading, writing = os.pipe()
    child_seed = rng.random()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            asyncio.run(_write(random.Random(child_seed), url, blobs_dir, artefacts, writing, commit_first))
        except BaseException as error:  # a forked child must never return into its parent's code
            print(f"the writer died by itself: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pipe.readline()  # it is open for writing
        time.sleep(rng.uniform(0, LONGEST_LIFE_S))
        os.kill(pid, signal.SIGKILL)
        written = pipe.read().splitlines(keepends=True)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise BrokenPromiseError("the writer died before it was killed")
    return [json.loads(line) for line in written if line.endswith(b"\n")]


async def _write(
    rng: random.Random, url: str, blobs_dir: Path, artefacts: list[bytes], writing: int, commit_first: bool
) -> None:
    catalogue, blobs = Catalogue(url, is_writer=True), BlobStore(blobs_dir)
    registry = Registry(catalogue, blobs, _Nobody())
    if commit_first:
        _plant_commit_first(registry, catalogue)
    os.write(writing, b"\n")

    async def work(name: str) -> None:
        while True:
            try:
                generation = await _one_change(rng, registry, name, artefacts)
            except ServerError:
                continue  # there was nothing to activate or delete
            os.write(writing, json.dumps({"name": name, "generation": generation}).encode() + b"\n")

    await asyncio.gather(*(work(name) for name in NAMES))


async def _one_change(rng: random.Random, registry: Registry, name: str, artefacts: list[bytes]) -> int:
    drawn = rng.random()
    if drawn < 0.7:
        data = rng.choice(artefacts)
        return (await registry.put(name, _chunks(data), activate=rng.random() < 0.7)).change.generation
    kept = list((await registry.get(name)).entry.versions)
    if drawn < 0.8:
        return (await registry.activate(name, rng.choice(kept))).change.generation
    if drawn < 0.87:
        return (await registry.split(name, Split({rng.choice(kept): 100}))).change.generation
    if drawn < 0.97:
        return (await registry.delete(name, rng.choice(kept))).generation
    return (await registry.delete(name)).generation


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 1000):
        yield data[begin : begin + 1000]


def _check(url: str, blobs_dir: Path, before: Snapshot, lines: list[dict[str, Any]]) -> tuple[Snapshot, int]:
    """What a starting server finds, and how many changes in it were never acknowledged. Raises BrokenPromiseError."""
    blobs = BlobStore(blobs_dir)
    with state.opened(url, blobs) as catalogue:
        after = catalogue.snapshot()
        for sha256 in after.sha256s():
            try:
                blobs.read(sha256)
            except ServerError as error:
                raise BrokenPromiseError(f"a committed version has no bytes: {error}") from error
        acknowledged = max([before.generation, *(line["generation"] for line in lines)])
        if after.generation < acknowledged:
            raise BrokenPromiseError(f"generation {acknowledged} was acknowledged, {after.generation} is there")
        generations = {event.generation for name in NAMES for event in catalogue.history(name, 10_000)}
        for line in lines:
            if line["generation"] > before.generation and line["generation"] not in generations:
                raise BrokenPromiseError(f"{line} was acknowledged and is not in the log")
        made = {generation for generation in generations if generation > before.generation}
        if made != set(range(before.generation + 1, after.generation + 1)):
            raise BrokenPromiseError(
                f"the log has {sorted(made)} after {before.generation}, the counter {after.generation}"
            )
        besides = made - {line["generation"] for line in lines}
        if len(besides) > len(NAMES):
            raise BrokenPromiseError(
                f"{len(besides)} changes were never acknowledged, with {len(NAMES)} under way at most"
            )
        stored = {sha256 for sha256, _ in blobs.stored()}
        if stored != after.sha256s():
            raise BrokenPromiseError(f"{len(stored - after.sha256s())} stored files belong to no version")
        if any((blobs_dir / "tmp").iterdir()):
            raise BrokenPromiseError("a temporary file is left")
    return after, len(besides)


def _plant_commit_first(registry: Registry, catalogue: Catalogue) -> None:
    waiting: dict[str, list[Callable[[], str]]] = {}
    real_stage, real_add = registry._blobs.stage, catalogue.add_version

    def stage() -> Any:
        staged = real_stage()
        real_keep = staged.keep

        def keep() -> str:
            waiting.setdefault(staged.sha256, []).append(real_keep)
            return staged.sha256

        staged.keep = keep  # type: ignore[method-assign]
        return staged

    def add_version(name: str, sha256: str, size_bytes: int, **options: Any) -> Any:
        change = real_add(name, sha256, size_bytes, **{**options, "is_stored": None})
        time.sleep(0.005)
        try:
            waiting[sha256].pop()()
        except ValueError:
            pass  # of the same bytes under two names, it is the other's upload, done and closed by now
        return change

    registry._blobs.stage = stage  # type: ignore[method-assign]
    catalogue.add_version = add_version  # type: ignore[method-assign]


def main() -> int:
    """Run from the command line. Returns 0, or 1 with the broken promise on stderr."""
    parser = argparse.ArgumentParser(description="Kill the writer of the catalogue, again and again.")
    parser.add_argument("--n", type=int, default=1000, help="kills")
    parser.add_argument("--state", type=Path, help="folder to keep, and to go on from (default: a new one, removed)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adakron-crash-") as temporary:
        folder = options.state or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            counted = run(options.n, folder, seed=options.seed)
        except BrokenPromiseError as fault:
            print(f"broken: {fault}", file=sys.stderr)
            return 1
    print(json.dumps(counted | {"seconds": round(time.monotonic() - started_s, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
