"""Descendants are found, detached ones too, and ended; nobody else is."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def run(program: str) -> str:
    """In a process of its own: becoming a subreaper and reaping would disturb the one that runs the tests."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_detached_grandchild_is_found_and_ended() -> None:
    output = run("""
        import subprocess, time
        from server import processes
        assert processes.adopt_orphans()
        subprocess.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & exit 0"], check=True)
        while "sleep" not in processes.descendants().values():
            time.sleep(0.01)
        before = list(processes.descendants().values())
        told = list(processes.end_descendants(grace_s=0.2).values())
        print(before, told, processes.descendants())
    """)
    assert output == "['sleep'] ['sleep'] {}"


def test_process_that_ignores_sigterm_is_killed() -> None:
    output = run("""
        import subprocess, sys, time
        from server import processes
        child = subprocess.Popen([sys.executable, "-c",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE)
        child.stdout.readline()
        processes.end_descendants(grace_s=0.2)
        print(processes.descendants())
    """)
    assert output == "{}"


def test_processes_that_end_by_themselves_are_not_told_to() -> None:
    output = run("""
        import subprocess
        from server import processes
        subprocess.Popen(["sleep", "0.2"])
        print(processes.end_descendants(grace_s=5))
    """)
    assert output == "{}"
