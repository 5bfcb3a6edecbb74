"""The processes this one started, and theirs: found, waited for, and ended.

A daemon that detaches itself from its parent would outlive us unseen. On Linux this process can become the one that
orphans below it are given to, so that `descendants` misses none. Elsewhere nothing is found and nothing is ended.
Knows nothing of what the processes do.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt_orphans() -> bool:
    """Have orphaned descendants become children of this process. Returns whether the system can (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def descendants() -> dict[int, str]:
    """pid -> name of every live process below this one; the dead that nobody waited for are not counted."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if not entry.name.isdecimal():
            continue
        try:
            head, _, tail = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue  # it ended while we looked
        state, parent = tail.split()[:2]
        if state != "Z":
            parents[int(entry.name)] = int(parent)
            names[int(entry.name)] = head.partition("(")[2]
    found: dict[int, str] = {}
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found.update((pid, names[pid]) for pid in level)
    return found


def end_descendants(*, grace_s: float) -> dict[int, str]:
    """Wait `grace_s` for all to end; then SIGTERM, SIGKILL, and as long after each. Returns those it had to tell."""
    told: dict[int, str] = {}
    for order in (None, signal.SIGTERM, signal.SIGKILL):
        if order is not None:
            remaining = descendants()
            told.update(remaining)
            for pid in remaining:
                _tell(pid, order)
        deadline_s = time.monotonic() + grace_s
        while descendants() and time.monotonic() < deadline_s:
            time.sleep(0.05)
            _reap()
    _reap()
    return told


def _tell(pid: int, order: signal.Signals) -> None:
    try:
        os.kill(pid, order)
    except ProcessLookupError:
        pass  # it ended by itself


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass  # no children are left
