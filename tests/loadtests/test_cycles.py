"""Cycles against a stand-in: one that lets go passes, and each thing that can be kept is found."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests import cycles
from loadtests.artefacts import SignatureMaker
from loadtests.cycles import Cycles
from loadtests.footprint import MIB, Process, growth_faults, processes
from loadtests.journal import Journal
from loadtests.server_process import ServerFailedError, running_server
from tests.loadtests.artefact import artefact_bytes

FAKE = """
import os, threading
from tests.loadtests import fake_server
fake, kept = fake_server.FakeServer(), []
put = fake._put
def leaking(name, body):
    {leak}
    return put(name, body)
fake._put = leaking
{more}
with fake_server.serving(fake, int(os.environ["ADAKRON_PORT"])):
    threading.Event().wait()
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "SETTLE_S", 0.3)
    monkeypatch.setattr(cycles, "LEASES_WITHIN_S", 0.3)


@contextmanager
def work(tmp_path: Path, leak: str = "pass", more: str = "") -> Iterator[Callable[[int], Journal]]:
    command = (sys.executable, "-c", FAKE.format(leak=leak, more=more))
    journal = Journal(None, {})
    with running_server(tmp_path / "log", 2, command=command) as server:
        found = Cycles(server, SignatureMaker(artefact_bytes()), journal, judged=lambda process: True)
        found.warm_up(10)

        def run(count: int) -> Journal:
            found.run(count)
            return journal

        yield run


def faults(tmp_path: Path, leak: str = "pass", more: str = "") -> list[str]:
    with work(tmp_path, leak, more) as run:
        return run(40).faults


def test_server_that_lets_go_passes(tmp_path: Path) -> None:
    with work(tmp_path) as run:
        journal = run(40)
    assert (journal.faults, journal.counts["cycles"]) == ([], 40)


def test_leaked_memory_is_found(tmp_path: Path) -> None:
    (words,) = faults(tmp_path, leak='kept.append(b"x" * (4 << 20))')
    assert "64 more are allowed" in words


def test_leaked_descriptors_and_threads_are_found(tmp_path: Path) -> None:
    leak = 'kept.append(open("/dev/null")); threading.Thread(target=threading.Event().wait, daemon=True).start()'
    assert sorted(words.split()[-5:][1] for words in faults(tmp_path, leak=leak)) == ["descriptors", "threads"]


def test_leaked_sockets_are_found(tmp_path: Path) -> None:
    (words,) = faults(tmp_path, leak="import socket; kept.append(socket.socket())")
    assert "sockets have become" in words


def test_leases_that_are_held_are_found(tmp_path: Path) -> None:
    more = 'fake_server.LEASES = fake_server.LEASES.replace("0.0", "3.0", 1)'
    assert faults(tmp_path, more=more) == ["left behind: replica r1 holds 3 leases"]


def test_metrics_without_leases_are_no_proof(tmp_path: Path) -> None:
    assert faults(tmp_path, more='fake_server.LEASES = ""') == ["left behind: GET /metrics shows no adakron_leases"]


def test_files_that_are_left_are_found(tmp_path: Path) -> None:
    leak = "os.makedirs(folder := os.environ['ADAKRON_STATE_DIR'] + '/blobs', exist_ok=True); open(folder + '/x', 'w')"
    assert faults(tmp_path, leak=leak) == ["left behind: 1 stored files are left"]


def test_answers_and_refusals_are_checked(tmp_path: Path) -> None:
    more = "fake.is_stale = True; fake._delete = lambda name: (500, {})"
    found = faults(tmp_path, more=more)
    assert any(words.startswith("wrong: ") for words in found)
    assert any("expected 200; got 500" in words for words in found)


def test_nobody_to_judge_is_no_success(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "log", 2, command=(sys.executable, "-m", "tests.loadtests.fake_server")) as server,
        pytest.raises(ServerFailedError, match="no process of the server to judge"),
    ):
        Cycles(server, SignatureMaker(artefact_bytes()), Journal(None, {})).warm_up(0)


def test_growth_is_judged_by_the_larger_of_both_bounds_and_a_process_that_is_gone_is_a_fault() -> None:
    def process(pid: int, mib: int) -> Process:
        return Process(pid, "ray::ServeReplica:clf:Clf", mib * MIB, 10, 3, 5)

    before = {1: process(1, 100), 2: process(2, 4000), 3: process(3, 10)}
    assert growth_faults(before, {1: process(1, 164), 2: process(2, 4200), 3: process(3, 10)}, before) == []
    found = growth_faults(before, {1: process(1, 165), 2: process(2, 4201)}, before)
    assert [words.partition(":")[0] for words in found] == ["clf (1)", "clf (2)", "clf (3) is gone"]


def test_processes_are_told_apart_by_their_titles() -> None:
    def of(title: str) -> Process:
        return Process(1, title, 0, 0, 0, 0)

    assert [of(f"ray::ServeReplica:{app}:X").role for app in ("clf", "admin")] == ["clf", "admin"]
    assert of("ray::ServeReplica:clf:Clf.apply").is_ours
    assert not of("ray::ServeController").is_ours
    assert of("/usr/bin/raylet --x").role == "raylet"
    own = processes(os.getpid())[os.getpid()]
    assert own.memory_bytes > MIB
    assert own.descriptors >= 3
