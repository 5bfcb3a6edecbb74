"""Starting: what can be checked before Ray starts is, and is told in one line with exit code 2."""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server import launch, state
from server.launch import StartError, check_port, default_replicas, example_call
from server.settings import Settings


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {"port": port, "state_dir": tmp_path / "state", "plain": True, "device": "cpu"}


def refused(capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> str:
    """Start, expect a refusal, and give its one line."""
    assert launch.serve(Settings(**settings)) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("adakron: ")]
    assert len(told) == 1
    assert not any("Traceback" in line for line in lines)
    return told[0]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that was forgotten must not start a cluster here."""
    monkeypatch.setitem(sys.modules, "server.deployment", None)


def test_taken_port_is_named(capsys: pytest.CaptureFixture[str], settings: dict[str, Any], taken_port: int) -> None:
    line = refused(capsys, settings | {"port": taken_port})
    assert f"127.0.0.1:{taken_port}" in line
    assert "ADAKRON_PORT" in line


def test_taken_port_of_haproxy_is_named(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(taken_port))
    monkeypatch.setattr("server.ray_environment.has_haproxy", lambda: True)
    assert "RAY_SERVE_HAPROXY_STATS_PORT" in refused(capsys, settings | {"plain": False})


def test_state_folder_in_use_is_named(capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    with state.locked(settings["state_dir"]):
        assert "another server is using" in refused(capsys, settings)


def test_unknown_backbone_is_named(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "no-model").mkdir()
    assert "no-model" in refused(capsys, settings | {"backbone": str(tmp_path / "no-model")})


def test_adapters_folder_that_is_none_is_named(capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    assert "is not a folder" in refused(capsys, settings | {"adapters_dir": Path("/no/such/folder")})


def test_address_that_others_reach_without_a_key_is_refused_and_says_how_to_make_one(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"host": "0.0.0.0", "adapters_dir": tmp_path}
    assert "adakron keys create" in refused(capsys, settings)
    store = Settings(**settings).open_keys(is_writer=True)
    _, key = store.create(["read"])
    store.revoke(key.id)
    assert "there is no key" in refused(capsys, settings)
    store.create(["read"], expires_s=1)
    assert "there is no key" in refused(capsys, settings)
    store.create(["read"])
    launch._prepare_state(Settings(**settings))
    store.close()


def test_loopback_without_a_key_is_open_and_the_log_says_so(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings |= {"adapters_dir": tmp_path}
    caplog.set_level("INFO")
    launch._prepare_state(Settings(**settings))
    assert "may do everything" in caplog.text
    caplog.clear()
    store = Settings(**settings).open_keys(is_writer=True)
    store.create(["read"])
    store.close()
    launch._prepare_state(Settings(**settings))
    assert "may do everything" not in caplog.text


def test_lost_catalogue_is_named(capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    blob = settings["state_dir"] / "blobs" / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    assert "is missing" in refused(capsys, settings | {"adapters_dir": blob.parent})


def test_cuda_without_a_device_is_named(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "_prepare_state", lambda settings: None)
    assert "no CUDA device" in refused(capsys, settings | {"device": "cuda"})


def test_refusal_leaves_no_lock(capsys: pytest.CaptureFixture[str], settings: dict[str, Any], taken_port: int) -> None:
    refused(capsys, settings | {"port": taken_port})
    with state.locked(settings["state_dir"]):
        pass


def test_failure_of_ray_is_told_in_one_line_and_what_it_started_is_stopped(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    def start(*arguments: object, **options: object) -> str:
        raise Exception("The current node timed out during startup.\nTraceback: a long story")

    deployment = SimpleNamespace(start=start, stop=lambda: stopped.append(True))
    monkeypatch.setitem(sys.modules, "server.deployment", deployment)
    monkeypatch.setattr("server.deployment", deployment, raising=False)
    monkeypatch.setattr(launch, "_prepare_state", lambda settings: None)
    monkeypatch.setattr("server.ray_environment.apply", lambda variables: None)
    monkeypatch.setattr("server.processes.adopt_orphans", lambda: True)
    monkeypatch.setattr("server.processes.end_descendants", lambda *, grace_s: {})
    line = refused(capsys, settings)
    assert "timed out during startup" in line
    assert "long story" not in line
    assert stopped == [True]


def test_free_port_is_accepted(settings: dict[str, Any]) -> None:
    check_port("127.0.0.1", settings["port"], "x", "X")


def test_port_of_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartError, match="X moves it"):
        check_port("192.0.2.77", 1234, "x", "X")


@pytest.mark.parametrize(("gpus", "cores", "replicas"), [(0, 1, 1), (0, 2, 1), (0, 16, 8), (2, 16, 2), (1, 2, 1)])
def test_default_replicas(gpus: int, cores: int, replicas: int) -> None:
    assert default_replicas(gpus=gpus, cores=cores) == replicas


@pytest.mark.parametrize("takes_pair", [False, True])
def test_example_call_is_a_shell_command_with_a_body_that_is_taken(takes_pair: bool) -> None:
    from server.schemas import parse_classify_request

    words = shlex.split(example_call("http://127.0.0.1:8000", [{"name": "acme/x", "takes_pair": takes_pair}]))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/classify"]
    parse_classify_request(json.loads(words[-1]))


def test_example_call_prefers_an_adapter_of_single_texts() -> None:
    adapters: list[dict[str, object]] = [{"name": "pairs", "takes_pair": True}, {"name": "texts", "takes_pair": False}]
    assert '"texts"' in example_call("http://x", adapters)


def test_example_call_carries_a_key_where_one_is_needed() -> None:
    for adapters in ([], [{"name": "texts", "takes_pair": False}]):
        assert 'authorization: Bearer $ADAKRON_API_KEY"' in example_call("http://x", list(adapters), has_keys=True)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")],
)
def test_server_is_asked_where_this_machine_reaches_it(host: str, url: str) -> None:
    assert launch._url(Settings(host=host)) == url


def test_example_call_without_adapters_registers_one() -> None:
    assert example_call("http://x", []).startswith("curl -T ")


def test_importing_the_launcher_does_not_import_ray() -> None:
    program = "import sys, server.launch; sys.exit(any(name == 'ray' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
