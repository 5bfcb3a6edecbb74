"""The processes below one of ours, found in /proc and killed by their pids: what a power cut does to a server.

Linux only. Never touches a process that is not a descendant of the one named.
"""

import os
import signal
import time
from pathlib import Path

_PROC = Path("/proc")
GONE_WITHIN_S = 30.0


def descendants(pid: int) -> set[int]:
    """The pids of all live processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended while we looked
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found


def kill_tree(pid: int) -> int:
    """SIGKILL to `pid` and everything below it; returns how many that were, once all are gone.

    The tree is stopped first, so that nothing in it is born or passed on to another parent meanwhile.
    Raises TimeoutError.
    """
    victims = {pid}
    while True:
        for victim in victims:
            _signal(victim, signal.SIGSTOP)
        found = victims | {child for victim in victims for child in descendants(victim)}
        if found == victims:
            break
        victims = found
    for victim in victims:
        _signal(victim, signal.SIGKILL)
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while any(_is_running(victim) for victim in victims):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes below {pid} are still there after {GONE_WITHIN_S:g} s")
        time.sleep(0.02)
    return len(victims)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended by itself


def _is_running(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
