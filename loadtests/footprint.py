"""What the processes of a server take: memory, descriptors and threads, read from /proc. Linux only.

Knows processes and their titles; nothing of what they do.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.process_tree import descendants

_PROC = Path("/proc")
_OURS = re.compile(r"^ray::ServeReplica:(clf|admin)")
MIB = 1 << 20
ALLOWED_GROWTH_BYTES = 64 * MIB
ALLOWED_GROWTH_SHARE = 0.05
ALLOWED_SOCKETS = 16  # the proxy and Ray keep connections open as it suits them; a leak is one a cycle
ALLOWED_DESCRIPTORS = 4  # the database's pool keeps up to five connections; a leak is one a cycle
ALLOWED_THREADS = 8  # pools start theirs one by one, when all that they have are busy; a leak is one a cycle


@dataclass(frozen=True, slots=True)
class Process:
    """title: its command line, or what it calls itself. memory_bytes: its proportional set size.

    descriptors  open ones, but for sockets, which are counted apart
    """

    pid: int
    title: str
    memory_bytes: int
    descriptors: int
    sockets: int
    threads: int

    @property
    def role(self) -> str:
        """clf or admin for ours; for others the beginning of the title."""
        found = _OURS.match(self.title)
        return found[1] if found else Path(self.title.split(" ")[0]).name.removeprefix("ray::").partition(".")[0][:24]

    @property
    def is_ours(self) -> bool:
        """Whether it runs this project's code all the time: a replica, or the admin plane."""
        return bool(_OURS.match(self.title))


def processes(pid: int) -> dict[int, Process]:
    """`pid` and all below it, by pid; those that end meanwhile are left out."""
    found = {}
    for one in {pid, *descendants(pid)}:
        try:
            found[one] = _read(one)
        except (OSError, StopIteration):
            continue
    return found


def _read(pid: int) -> Process:
    folder = _PROC / str(pid)
    title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    rollup = (folder / "smaps_rollup").read_text().splitlines()
    pss_kib = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    threads = int((folder / "stat").read_text().rpartition(")")[2].split()[17])
    targets = [_target(link) for link in (folder / "fd").iterdir()]
    sockets = sum(target.startswith("socket:") for target in targets)
    return Process(pid, title, pss_kib * 1024, len(targets) - sockets, sockets, threads)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed while we looked


def growth_faults(before: Mapping[int, Process], after: Mapping[int, Process], judged: Iterable[int]) -> list[str]:
    """What the judged processes have too much of, against before: memory, descriptors, sockets, threads."""
    faults = []
    for pid in judged:
        if pid not in after:
            faults.append(f"{before[pid].role} ({pid}) is gone")
            continue
        old, new = before[pid], after[pid]
        allowed = max(ALLOWED_GROWTH_BYTES, ALLOWED_GROWTH_SHARE * old.memory_bytes)
        if new.memory_bytes - old.memory_bytes > allowed:
            faults.append(
                f"{old.role} ({pid}): {old.memory_bytes / MIB:.0f} MiB have become {new.memory_bytes / MIB:.0f}; "
                f"{allowed / MIB:.0f} more are allowed"
            )
        for kind, more in (
            ("descriptors", ALLOWED_DESCRIPTORS),
            ("sockets", ALLOWED_SOCKETS),
            ("threads", ALLOWED_THREADS),
        ):
            if getattr(new, kind) > getattr(old, kind) + more:
                faults.append(f"{old.role} ({pid}): {getattr(old, kind)} {kind} have become {getattr(new, kind)}")
    return faults
