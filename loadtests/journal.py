"""What a long run has counted so far, in a JSON file: an interrupted run is taken up again there.

Knows files and the machine; nothing of what is counted.
"""

import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
FAULTS_KEPT = 20


class OtherRunError(Exception):
    """The file belongs to a run under other conditions, which must not be mixed with this one."""


class Journal:
    """Counts, and the first faults in words; `save` after every piece of work that need not be done again.

    path   None: nothing is kept
    setup  what must be equal for a run to go on: the command and its settings
    Raises OtherRunError.
    """

    def __init__(self, path: Path | None, setup: Mapping[str, Any]) -> None:
        self._path = path
        self._setup = dict(setup)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds = 0.0
        if path is not None and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["setup"] != self._setup:
                raise OtherRunError(f"{path} holds a run of {kept['setup']}; this is one of {self._setup}")
            self.counts.update(kept["counts"])
            self.faults, self.seconds = kept["faults"], kept["seconds"]

    def fault(self, kind: str, words: str) -> None:
        """Count one more of `kind`; the first few are kept in words."""
        self.counts[kind] += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(f"{kind}: {words}")

    def save(self, **more: Any) -> None:
        """Write it all, at once: whoever is killed meanwhile leaves the former file. `more` goes beside the counts."""
        if self._path is None:
            return
        document = {
            "setup": self._setup,
            "counts": dict(self.counts),
            "faults": self.faults,
            "seconds": round(self.seconds, 1),
            "conditions": conditions(),
            **more,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._path)


def conditions() -> dict[str, Any]:
    """What a reader needs to compare two reports."""
    return {
        "commit": _commit(),
        "cores": os.cpu_count(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    known = subprocess.run(command, capture_output=True, text=True, check=False)
    return known.stdout.strip() or None
