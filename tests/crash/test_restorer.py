"""A bite of the kills of `tests.crash.restorer`, and the proof that it finds a planted bug."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from tests.crash.restorer import BrokenPromiseError, run
try:
    run(30, Path(sys.argv[1]), bytes_last=True)
except BrokenPromiseError as fault:
    print(fault)
"""


# Forking is safe in a process of its own, which has no other threads; pytest's has.
def test_killed_backups_and_restores_leave_nothing_half(project_dir: Path) -> None:
    command = [sys.executable, "-m", "tests.crash.restorer", "--n", "5"]
    done = subprocess.run(command, cwd=project_dir, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["kills"] == 10
    assert counted["backups cut short"] + counted["restores cut short"] > 0


def test_restore_that_commits_before_the_bytes_are_there_is_found_out(tmp_path: Path, project_dir: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=project_dir, capture_output=True, text=True, timeout=280, check=False)
    assert "has no bytes" in done.stdout, done.stderr
