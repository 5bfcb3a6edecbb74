"""A server of the load test's own: a child process, on loopback, with a state folder that is thrown away."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_WITHIN_S = 180.0
STOP_WITHIN_S = 60.0
PROJECT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "server")
NO_SETTINGS: Mapping[str, object] = {}
_PORTS = range(20_000, 30_000)  # above Ray's workers', 10002 to 19999; below Linux' own choices, from 32768 on


@dataclass(frozen=True, slots=True)
class RunningServer:
    """url: of its HTTP port; pid: of the process that all others of it are below."""

    url: str
    pid: int
    state_dir: Path


class ServerFailedError(Exception):
    """The server ended, or did not become ready, or did not stop when asked; the message shows its last lines."""


@contextmanager
def running_server(
    log: Path,
    replicas: int,
    *,
    command: Sequence[str] = COMMAND,
    settings: Mapping[str, object] = NO_SETTINGS,
    state_dir: Path | None = None,
    ready_within_s: float = READY_WITHIN_S,
    stop_within_s: float = STOP_WITHIN_S,
) -> Iterator[RunningServer]:
    """Start a server, yield it once it is ready, and stop it by its pid.

    state_dir  its folder, which stays; without one, a new one that does not
    What it prints goes to `log`. Raises ServerFailedError.
    """
    with tempfile.TemporaryDirectory(prefix="adakron-load-") as new_dir:
        folder = state_dir or Path(new_dir)
        process, url = launch(log, replicas=replicas, state_dir=folder, command=command, settings=settings)
        try:
            wait_until_ready(process, url, log, ready_within_s)
            yield RunningServer(url, process.pid, folder)
        finally:
            stop(process, log, stop_within_s)


def launch(
    log: Path,
    *,
    replicas: int,
    state_dir: Path,
    command: Sequence[str] = COMMAND,
    settings: Mapping[str, object] = NO_SETTINGS,
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server on loopback and do not wait for it; whoever calls stops it. Returns it with its URL.

    settings  further ones, by their names in lower case: {"backbone": "random:tiny"}
    What it prints goes to `log`.
    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADAKRON_")}
    environment |= {
        "ADAKRON_HOST": "127.0.0.1",
        "ADAKRON_PORT": str(port),
        "ADAKRON_REPLICAS": str(replicas),
        "ADAKRON_STATE_DIR": str(state_dir),
        **{f"ADAKRON_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with log.open("wb") as output:
        # A session of its own: an interrupt from the keyboard reaches us alone, and we stop the server in order.
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return process, f"http://127.0.0.1:{port}"


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


def stop(process: subprocess.Popen[bytes], log: Path, within_s: float = STOP_WITHIN_S) -> None:
    """SIGTERM, and SIGKILL if it does not obey. Raises ServerFailedError then."""
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
    """A port of loopback that nobody listened on a moment ago.

    Not one that the system hands out to whoever asks for any, nor one of Ray's workers': what Ray starts, before the
    server listens, may take those, and then answers in its place.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerFailedError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free")
