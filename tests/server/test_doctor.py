"""Each thing that `adakron doctor` looks at, found well and found broken; and that looking changes nothing."""

import fcntl
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adakron.errors import BackboneError
from server import doctor
from server.cli import main
from server.doctor import Finding
from server.errors import StorageUnavailableError
from server.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings(state_dir=tmp_path / "state", port=port, device="cpu", plain=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def test_packages(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch 2" in doctor.packages(settings).found
    monkeypatch.setattr(doctor, "_PACKAGES", ("adakron", "no-such-package"))
    found = doctor.packages(settings)
    assert (found.verdict, "no-such-package" in found.found) == ("broken", True)


def test_device(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.device(settings).verdict == "ok"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert doctor.device(settings.model_copy(update={"device": "cuda"})).verdict == "broken"
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("server.doctor.shutil.which", lambda name: f"/bin/{name}")
    assert doctor.device(settings.model_copy(update={"device": "auto"})).verdict == "note"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda n: f"GPU {n}")
    assert "GPU 0, GPU 1; 2 replicas" in doctor.device(settings.model_copy(update={"device": "auto"})).found


def test_kernels(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.doctor.compiler.native_library", lambda: object())
    assert doctor.kernels(settings).verdict == "ok"
    monkeypatch.setattr("server.doctor.compiler.native_library", lambda: None)
    assert "do not compile" in doctor.kernels(settings).found
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = doctor.kernels(settings)
    assert (found.verdict, "no-such-compiler" in found.found, "apt" in str(found.fix)) == ("note", True, True)


def test_proxy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.proxy(settings).verdict == "note"
    fast = settings.model_copy(update={"plain": False})
    assert doctor.proxy(fast).verdict == "ok"
    monkeypatch.setattr(doctor, "has_haproxy", lambda: False)
    assert doctor.proxy(fast).verdict == "note"


def test_ports(settings: Settings, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.ports(settings).found == f"free: {settings.port}"
    taken = settings.model_copy(update={"port": listener.getsockname()[1]})
    listener.settimeout(0)
    monkeypatch.setattr(doctor.AdaKron, "info", lambda self: {"engine": {"backbone": "stub"}})
    assert doctor.ports(taken).verdict == "ok"
    monkeypatch.setattr(doctor.AdaKron, "info", lambda self: {"something": "else"})
    found = doctor.ports(taken)
    assert (found.verdict, "ADAKRON_PORT" in str(found.fix)) == ("broken", True)
    monkeypatch.setattr(doctor, "HAPROXY_PORTS", (("X_PORT", listener.getsockname()[1], "statistics"),))
    found = doctor.ports(settings.model_copy(update={"plain": False}))
    assert (found.verdict, "X_PORT" in str(found.fix)) == ("broken", True)


def test_state_folder(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "to be made" in doctor.state_folder(settings).found
    assert not settings.state_dir.exists()
    settings.state_dir.mkdir()
    assert "ready" in doctor.state_folder(settings).found
    with (settings.state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in doctor.state_folder(settings).found
    assert "ready" in doctor.state_folder(settings).found
    monkeypatch.setattr("server.doctor.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert doctor.state_folder(settings).verdict == "note"
    (tmp_path / "file").touch()
    blocked = settings.model_copy(update={"state_dir": tmp_path / "file" / "x"})
    assert doctor.state_folder(blocked).verdict == "broken"


def test_catalogue(settings: Settings) -> None:
    from server.database import Database

    assert "none yet" in doctor.catalogue(settings).found
    settings.state_dir.mkdir()
    Database(settings.catalogue, is_writer=True).close()
    assert doctor.catalogue(settings).found.endswith("opens")
    (settings.state_dir / "catalogue.sqlite").write_bytes(b"nonsense" * 1000)
    assert doctor._checked("catalogue", doctor.catalogue, settings).verdict == "broken"


def test_backbone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = SimpleNamespace(name="tiny", fingerprint=SimpleNamespace(weights_sha256="ab" * 32))
    monkeypatch.setattr("server.doctor.Backbone.load", lambda name: loaded)
    assert doctor.backbone(settings).found == "tiny, weights abababababab"


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (BackboneError("no backbone", hint="pip install it"), "pip install it"),
        (StorageUnavailableError("no catalogue"), "see the message"),
        (RuntimeError("driver"), "see the message"),
    ],
)
def test_a_check_that_fails_is_a_finding(settings: Settings, error: Exception, fix: str) -> None:
    def check(settings: Settings) -> Finding:
        raise error

    found = doctor._checked("x", check, settings)
    assert (found.verdict, found.fix) == ("broken", fix)


@pytest.mark.parametrize("verdict", ["ok", "note", "broken"])
def test_the_verb_says_what_is_found_and_exits_accordingly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verdict: Any
) -> None:
    finding = Finding("ports", verdict, "what", "do this")
    monkeypatch.setattr(doctor, "CHECKS", {"ports": lambda settings: finding})
    code = 1 if verdict == "broken" else 0
    assert main(["doctor"]) == code
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == [verdict.upper() if code else verdict, "ports", "what", "->", "do", "this"]
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {
        "healthy": code == 0,
        "findings": [{"check": "ports", "verdict": verdict, "found": "what", "fix": "do this"}],
    }


def test_a_wrong_setting_is_told_before_anything_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAKRON_PORT", "x")
    assert main(["doctor"]) == 2
    assert "ADAKRON_PORT" in capsys.readouterr().err
