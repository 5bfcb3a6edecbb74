"""A server of the load test's own: a child process, on loopback, with a state folder that is thrown away."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_WITHIN_S = 180.0
STOP_WITHIN_S = 60.0
PROJECT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "server")


class ServerFailedError(Exception):
    """The server ended, or did not become ready, or did not stop when asked; the message shows its last lines."""


@contextmanager
def running_server(
    log: Path,
    replicas: int,
    *,
    command: Sequence[str] = COMMAND,
    state_dir: Path | None = None,
    ready_within_s: float = READY_WITHIN_S,
    stop_within_s: float = STOP_WITHIN_S,
) -> Iterator[str]:
    """Start a server, yield its URL once it is ready, and stop it by its pid. What it prints goes to `log`.

    state_dir  its folder, which stays; without one, a new one that does not
    Raises ServerFailedError.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="adakron-load-") as new_dir:
        process = launch(log, port=port, replicas=replicas, state_dir=state_dir or Path(new_dir), command=command)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log, ready_within_s)
            yield url
        finally:
            _stop(process, log, stop_within_s)


def launch(
    log: Path, *, port: int, replicas: int, state_dir: Path, command: Sequence[str] = COMMAND
) -> subprocess.Popen[bytes]:
    """Start a server on loopback and do not wait for it; whoever calls stops it. What it prints goes to `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADAKRON_")}
    environment |= {
        "ADAKRON_HOST": "127.0.0.1",
        "ADAKRON_PORT": str(port),
        "ADAKRON_REPLICAS": str(replicas),
        "ADAKRON_STATE_DIR": str(state_dir),
    }
    with log.open("wb") as output:
        # A session of its own: an interrupt from the keyboard reaches us alone, and we stop the server in order.
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def make_key(state_dir: Path, *scopes: str) -> str:
    """A new key with these scopes for the server of a state folder, as the command line makes it.

    Raises subprocess.CalledProcessError.
    """
    arguments = ["-c", "from server.cli import main; raise SystemExit(main())", "keys", "create", "--state-dir"]
    made = subprocess.run(
        [sys.executable, *arguments, str(state_dir), "--scopes", *scopes],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return made.stdout.strip()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, within_s: float) -> None:
    """Wait for /readyz. Raises ServerFailedError."""
    deadline_s = time.monotonic() + within_s
    with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise ServerFailedError(f"the server ended with exit code {process.returncode}{_last_lines(log)}")
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.2)
    raise ServerFailedError(f"the server was not ready within {within_s:g} s{_last_lines(log)}")


def _stop(process: subprocess.Popen[bytes], log: Path, within_s: float) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing but what it started
        process.wait()
        raise ServerFailedError(
            f"the server did not stop within {within_s:g} s and was killed{_last_lines(log)}"
        ) from error


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
    return "".join(f"\n  | {line}" for line in lines)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
