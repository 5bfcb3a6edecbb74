"""A PostgreSQL of the tests' own, from the wheel that carries its binaries: one server, a database a test."""

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NUMBERS = itertools.count(1)


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a new server's first database; skips the test where the server cannot be installed."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver has no wheel for this Python or system")
    # A socket's path may have some hundred characters: pytest's own folders are too deep.
    import psutil

    with tempfile.TemporaryDirectory(prefix="pg-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)  # as root, the server runs as a user of its own
        patch.setenv("XDG_RUNTIME_DIR", folder)
        server = pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            # At once and without a checkpoint: writing hundreds of databases to disk to throw them away takes minutes.
            postmaster = int(Path(f"{folder}/data/postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGQUIT)
            psutil.Process(postmaster).wait(30)
            server.cleanup()


def new_database(server_url: str) -> str:
    """The URL of an empty database of that server."""
    import psycopg

    name = f"catalogue_{next(_NUMBERS)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server_url.replace("/postgres?", f"/{name}?")
