"""The databases and stores that several modules test against: real ones, started once a session."""

from collections.abc import Iterator

import pytest

from tests.server.postgres import running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a running PostgreSQL; see `tests.server.postgres.new_database`."""
    with running_postgres() as url:
        yield url
