"""What several modules test against: real databases, started once a session, and a server in this process."""

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
