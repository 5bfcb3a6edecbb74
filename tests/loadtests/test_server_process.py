import os
import socket
import sys
from pathlib import Path

import httpx
import pytest

from loadtests import server_process
from loadtests.server_process import ServerFailedError, free_port, make_key, running_server

FAKE = (sys.executable, "-m", "tests.loadtests.fake_server")


def script(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_answers_inside_and_is_gone_afterwards(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", 2, command=FAKE) as server:
        assert httpx.get(f"{server.url}/v1/info", trust_env=False).json() == {"server": "fake"}
        assert is_running(server.pid)
        assert server.state_dir.is_dir()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/v1/info", trust_env=False)


def test_a_port_is_free_and_none_that_another_process_is_given_by_chance(monkeypatch) -> None:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        assert given.getsockname()[1] not in server_process._PORTS
    monkeypatch.setattr(server_process, "_PORTS", range(20_000, 20_003))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 20_001))
        taken.listen()
        assert {free_port() for _ in range(30)} <= {20_000, 20_002}
    monkeypatch.setattr(server_process, "_PORTS", range(20_001, 20_002))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 20_001))
        taken.listen()
        with pytest.raises(ServerFailedError, match="no port from 20001 to 20001 is free"):
            free_port()


def test_the_server_is_stopped_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), running_server(tmp_path / "log", 2, command=FAKE) as server:
        raise KeyError
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


def test_the_server_gets_its_settings_and_a_state_folder_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAKRON_BACKBONE", "from-outside")
    code = (
        "import os; [print(f'{k}={v}') for k, v in os.environ.items() if k.startswith('ADAKRON_')]; raise SystemExit(3)"
    )
    with (
        pytest.raises(ServerFailedError),
        running_server(tmp_path / "log", 5, command=script(code), settings={"device_budget_bytes": 7}),
    ):
        pass
    found = dict(line.split("=", 1) for line in (tmp_path / "log").read_text().splitlines())
    own = {"ADAKRON_HOST", "ADAKRON_PORT", "ADAKRON_REPLICAS", "ADAKRON_STATE_DIR"}
    assert found.keys() == own | {"ADAKRON_DEVICE_BUDGET_BYTES"}
    assert (found["ADAKRON_HOST"], found["ADAKRON_REPLICAS"]) == ("127.0.0.1", "5")
    assert found["ADAKRON_DEVICE_BUDGET_BYTES"] == "7"
    assert not Path(found["ADAKRON_STATE_DIR"]).exists()


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; sys.exit('port taken')"
    with (
        pytest.raises(ServerFailedError, match=r"exit code 1\n  \| port taken"),
        running_server(tmp_path / "log", 2, command=script(code)),
    ):
        pass


def test_a_server_that_never_gets_ready_is_reported_and_stopped(tmp_path: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with (
        pytest.raises(ServerFailedError, match="not ready within 1 s"),
        running_server(tmp_path / "log", 2, command=script(code), ready_within_s=1.0),
    ):
        pass
    assert not is_running(int((tmp_path / "log").read_text()))


def test_a_server_that_does_not_stop_is_killed_and_reported(tmp_path: Path) -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True);"
        "from tests.loadtests import fake_server as f; c = f.serving(f.FakeServer(), int(os.environ['ADAKRON_PORT']));"
        "c.__enter__(); signal.pause()"
    )
    with (
        pytest.raises(ServerFailedError, match=r"did not stop within 0\.5 s"),
        running_server(tmp_path / "log", 2, command=script(code), stop_within_s=0.5),
    ):
        pass
    assert not is_running(int((tmp_path / "log").read_text().split()[0]))


def test_the_folder_that_is_given_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with running_server(tmp_path / "log", 1, command=FAKE, state_dir=state):
        pass
    assert state.is_dir()


def test_a_key_is_made_as_the_command_line_makes_it(tmp_path: Path) -> None:
    from server.settings import Settings

    key = make_key(tmp_path / "state", "classify", "read")
    [kept] = Settings(state_dir=tmp_path / "state").open_keys().all()[1]
    assert key.startswith(f"ad_{kept.id}_")
    assert kept.scopes == {"classify", "read"}
