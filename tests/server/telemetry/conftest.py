"""Logging as a server configures it, and as it was before when the test is over."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from server.telemetry import logs

# log(level="INFO", access_share=1.0) gives what reads the lines so far
Configure: TypeAlias = Callable[..., Callable[[], list[dict[str, Any]]]]


@pytest.fixture
def configure() -> Iterator[Configure]:
    root = logging.getLogger()
    before, level, access = list(root.handlers), root.level, logs.access_log.level

    def start(**options: Any) -> Callable[[], list[dict[str, Any]]]:
        stream = io.StringIO()
        logs.configure(stream, **{"level": "WARNING", "process": "r1", **options})
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield start
    root.handlers[:] = before
    root.setLevel(level)
    logs.access_log.setLevel(access)
