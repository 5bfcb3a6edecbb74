"""What the processes of a server take of the processor, by what they are: read from /proc. Linux only."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from loadtests.process_tree import descendants

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ROLES = (
    (re.compile(r"^ray::ServeReplica:(\w+)"), None),
    (re.compile(r"haproxy"), "haproxy"),
    (re.compile(r"^ray::HAProxyManager"), "haproxy manager"),
    (re.compile(r"^ray::(ServeController|ProxyActor)"), "serve control"),
    (re.compile(r"loadtests\.http_stacks uvicorn"), "uvicorn"),
)

CpuSeconds: TypeAlias = Mapping[int, tuple[str, float]]


def role_of(title: str) -> str:
    """What a process is by its command line: "replica clf", "haproxy", "uvicorn" ..; the rest of Ray is "other"."""
    for pattern, role in _ROLES:
        if found := pattern.search(title):
            return role or f"replica {found[1]}"
    return "other"


def cpu_seconds(pid: int) -> CpuSeconds:
    """User and system time of `pid` and all below it so far: pid -> (role, seconds), to a hundredth of a second."""
    found = {}
    for one in {pid, *descendants(pid)}:
        try:
            title = (_PROC / str(one) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (_PROC / str(one) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        found[one] = (role_of(title), (int(fields[11]) + int(fields[12])) * _TICK_S)
    return found


def spent(before: CpuSeconds, after: CpuSeconds) -> dict[str, float]:
    """Seconds between two looks, by role. A process that ended in between is not counted."""
    seconds: dict[str, float] = defaultdict(float)
    for pid, (role, total_s) in after.items():
        seconds[role] += total_s - before.get(pid, (role, 0.0))[1]
    return dict(seconds)
