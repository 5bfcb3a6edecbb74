"""One of the kills of `loadtests.kills`: a whole server, in the middle of registrations."""

from pathlib import Path

import pytest

from loadtests.kills import run
from tests.e2e.cluster import Server

KILLS = 1  # each is a start of the whole server, and there is one more at the end


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_server_keeps_what_it_acknowledged_and_shows_nothing_by_halves(cluster: Server, tmp_path: Path) -> None:
    if cluster.process is not None:  # both would listen on the ports that Ray fixes
        cluster.stop()
    counted = run(KILLS, tmp_path)
    assert counted["kills"] == KILLS
    assert counted["answered"] > 0
    assert counted["processes"] > 5 * KILLS
