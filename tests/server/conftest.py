"""What several modules test against: real databases and stores, started once a session; a server in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.cli_runs import Run
from tests.server.in_process import Server, running
from tests.server.postgres import running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a running PostgreSQL; see `tests.server.postgres.new_database`."""
    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server of the tests' own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("artefacts")
        yield "s3://artefacts"
    server.stop()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in this process, which every blocking client reaches, whatever address it is given; no retry waits."""
    from server.client import blocking  # before what it is made of is replaced

    with running(tmp_path / "house") as opened:
        real = httpx.Client

        def connected(**options: Any) -> httpx.Client:
            return real(**{**options, "transport": opened.wire})

        monkeypatch.setattr(blocking.httpx, "Client", connected)
        monkeypatch.setattr("server.client.exchange.FIRST_PAUSE_S", 0.0)
        yield opened


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line against that server."""
    from server.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
