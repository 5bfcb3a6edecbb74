"""A twentieth of the kills of `tests.crash.writer`, and the proof that it finds a planted bug."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from tests.crash.writer import BrokenPromiseError, run
try:
    run(60, Path(sys.argv[1]), commit_first=True)
except BrokenPromiseError as fault:
    print(fault)
"""


# Forking is safe in a process of its own, which has no other threads; pytest's has.
def test_fifty_killed_writers_lose_nothing_and_leave_nothing(tmp_path: Path, project_dir: Path) -> None:
    command = [sys.executable, "-m", "tests.crash.writer", "--n", "50", "--state", str(tmp_path / "state")]
    done = subprocess.run(command, cwd=project_dir, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["kills"] == 50
    assert counted["acknowledged"] > 50
    again = subprocess.run(command, cwd=project_dir, capture_output=True, text=True, timeout=100, check=False)
    assert json.loads(again.stdout)["acknowledged"] == counted["acknowledged"]


def test_writer_that_commits_before_the_bytes_are_stored_is_found_out(tmp_path: Path, project_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=project_dir,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "has no bytes" in done.stdout, done.stderr
