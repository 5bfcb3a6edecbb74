"""What the tutorials and how-tos show is what happens: every step of each, in order, against the running server.

First ten minutes is for `python -m loadtests.newcomer`, which starts from nothing; Operate, which makes keys, for
test_keys.py; Training together has nothing that takes seconds.
"""

import re
from pathlib import Path

import pytest

from adakron import Adapter
from tests.e2e.cluster import PROJECT, Server
from tests.e2e.tutorial_reader import read

ELSEWHERE = {"first-ten-minutes.md", "operate.md", "training-together.md"}


def pages() -> set[str]:
    """Of the first two parts of the index."""
    index = (PROJECT / "docs" / "index.md").read_text(encoding="utf-8")
    parts = index.partition("## Tutorials")[2].partition("## Reference")[0]
    return set(re.findall(r"\]\(([\w-]+\.md)\)", parts))


@pytest.fixture(scope="module")
def shipped(cluster: Server) -> None:
    """Adapters that a server has from the start, and that the pages call."""
    cluster.ensure_running()
    for name in ("sst2", "snips", "stsb"):
        assert cluster.put(name, Adapter.from_folder(PROJECT / "adapters" / name)).status_code in (200, 201)


@pytest.mark.parametrize("page", sorted(pages() - ELSEWHERE))
def test_every_step_of_the_page_does_what_it_shows(page: str, server: Server, shipped: None, tmp_path: Path) -> None:
    assert read(page, server, tmp_path) >= 1
