"""One real cluster for the whole session: its ports are fixed, so there can be no second one beside it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts Ray, and may wait for it longer than a test usually may.

    Servers of their own come last: the shared one is stopped for them, and would have to be started again after.
    """
    here = Path(__file__).parent
    own = ["test_keys.py", "test_kills.py"]
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(480))
    items.sort(
        key=lambda item: own.index(item.path.name) + 1 if item.path.parent == here and item.path.name in own else 0
    )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server, not running yet, or no longer where a test has stopped it."""
    from tests.e2e.cluster import Server

    folder = tmp_path_factory.mktemp("server")
    running = Server(folder / "state", folder / "log.txt")
    try:
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()


@pytest.fixture
def server(cluster: Any) -> Any:
    """The server, running."""
    cluster.ensure_running()
    return cluster


@pytest.fixture(scope="session")
def info(cluster: Any) -> dict[str, Any]:
    """What it says of itself, as of its first start."""
    cluster.ensure_running()
    found: dict[str, Any] = cluster.info()
    return found


@pytest.fixture(scope="session")
def make(info: dict[str, Any]) -> Callable[..., Any]:
    """make(mark, labels) gives a signature adapter for the server's backbone."""
    from tests.e2e.cluster import signature

    return lambda mark, **options: signature(info, mark, **options)
