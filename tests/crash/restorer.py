"""Killing a backup and a restore, again and again: `python -m tests.crash.restorer --n 100`.

A child process takes a backup, or restores one over a state that holds something else, and is killed at a random
moment. Then

    a backup under its name is whole, or there is none     asking again finishes it
    a server starts on all of the former state, on all of the restored one, or not at all     asking again finishes it

Only children of this process are killed, by their pid.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from server import restore, state
from server.backup import Manifest, back_up
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import ServerError, StorageUnavailableError
from tests.server.fakes import tiny_adapter

FORMER = {"old"}
NAMES = {f"acme/n{number}" for number in range(40)}


class BrokenPromiseError(AssertionError):
    """A promise was broken; the message says which."""


def nothing(*told: object) -> None:
    pass


def run(trials: int, folder: Path, *, seed: int = 0, bytes_last: bool = False) -> dict[str, int]:
    """So many kills of each. Returns how many of them found it unfinished.

    bytes_last  plants a bug: rows are committed before their bytes are there, and no mark is set
    Raises BrokenPromiseError.
    """
    rng = random.Random(seed)
    _fill(folder / "house", NAMES)
    _fill(folder / "former", FORMER)
    _take(folder / "house", folder / "whole")
    backup_s = _seconds(lambda: _take(folder / "house", folder / "timed"))
    shutil.copytree(folder / "former", folder / "timed-state")
    restore_s = _seconds(lambda: _bring_back(folder / "whole", folder / "timed-state"))
    if bytes_last:
        _plant_bytes_last()
    counted = {"kills": 0, "backups cut short": 0, "restores cut short": 0}
    for _ in range(trials):
        counted["backups cut short"] += _kill_backup(rng.uniform(0, backup_s), folder)
        counted["restores cut short"] += _kill_restore(rng.uniform(0, restore_s), folder)
        counted["kills"] += 2
    return counted


def _kill_backup(after_s: float, folder: Path) -> bool:
    target = folder / "backup"
    _killed(after_s, lambda: _take(folder / "house", target))
    cut_short = not target.exists()
    if cut_short:
        _take(folder / "house", target)
    try:
        restore.check(target, begin=nothing, advance=nothing)
    except StorageUnavailableError as error:
        raise BrokenPromiseError(f"a backup has its name and is not whole: {error}") from error
    shutil.rmtree(target)
    return cut_short


def _kill_restore(after_s: float, folder: Path) -> bool:
    target = folder / "state"
    shutil.copytree(folder / "former", target)
    _killed(after_s, lambda: _bring_back(folder / "whole", target))
    found = _started(target)
    if found not in (None, FORMER, NAMES):
        raise BrokenPromiseError(f"a server starts on {len(found or ())} names, neither the former nor the restored")
    if found != NAMES:
        _bring_back(folder / "whole", target)
        if _started(target) != NAMES:
            raise BrokenPromiseError("a restore that was asked for again has not finished")
    shutil.rmtree(target)
    return found != NAMES


def _started(folder: Path) -> set[str] | None:
    """The names that a starting server finds, all with their bytes; None where it refuses to start."""
    try:
        with state.locked(folder), state.opened(sqlite_url(folder / "catalogue.sqlite"), _blobs(folder)) as catalogue:
            snapshot = catalogue.snapshot()
            for sha256 in snapshot.sha256s():
                try:
                    _blobs(folder).read(sha256)
                except ServerError as error:
                    raise BrokenPromiseError(f"a version that is served has no bytes: {error}") from error
            return set(snapshot.adapters)
    except StorageUnavailableError:
        return None


def _fill(folder: Path, names: set[str]) -> None:
    state.make_folder(folder)
    catalogue, blobs = Catalogue(sqlite_url(folder / "catalogue.sqlite"), is_writer=True), _blobs(folder)
    for seed, name in enumerate(sorted(names)):
        adapter = tiny_adapter(seed)
        with blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        catalogue.add_version(name, adapter.sha256, adapter.size_bytes, config=adapter.config.to_json())
    catalogue.close()


def _take(source: Path, target: Path) -> Manifest:
    return back_up(sqlite_url(source / "catalogue.sqlite"), _blobs(source), target, begin=nothing, advance=nothing)


def _bring_back(source: Path, folder: Path) -> None:
    url = sqlite_url(folder / "catalogue.sqlite")
    restore.restore(source, folder, url, _blobs(folder), force=True, begin=nothing, advance=nothing)


def _blobs(folder: Path) -> BlobStore:
    return BlobStore(folder / "blobs")


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s


def _killed(after_s: float, work: Callable[[], object]) -> None:
    """Do it in a child that is killed so many seconds later, or ends before."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:  # a forked child must never return into its parent's code
            print(f"it failed by itself: {error!r}", file=sys.stderr)
        finally:
            os._exit(0)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _plant_bytes_last() -> None:
    real_put, puts = restore._put, []

    def put(*arguments: object) -> None:
        puts.append(1)
        if len(puts) == 2:  # after the commit; each child counts anew
            real_put(*arguments)  # type: ignore[arg-type]

    restore._put = put  # type: ignore[assignment]
    restore._write_mark = lambda mark, manifest: mark.touch()  # type: ignore[assignment]
    state.check_not_restoring = nothing  # type: ignore[assignment]


def main() -> int:
    """Run from the command line. Returns 0, or 1 with the broken promise on stderr."""
    parser = argparse.ArgumentParser(description="Kill backups and restores, again and again.")
    parser.add_argument("--n", type=int, default=100, help="kills of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adakron-crash-") as folder:
        try:
            counted = run(options.n, Path(folder), seed=options.seed)
        except BrokenPromiseError as fault:
            print(f"broken: {fault}", file=sys.stderr)
            return 1
    print(json.dumps(counted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
