"""A few of the kills of `loadtests.kills`: a whole server, in the middle of registrations."""

from pathlib import Path

import pytest

from loadtests.kills import run
from tests.e2e.cluster import Server

KILLS = 2  # each is a start of the whole server: half a minute to a minute


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_servers_keep_what_they_acknowledged_and_show_nothing_by_halves(cluster: Server, tmp_path: Path) -> None:
    if cluster.process is not None:  # both would listen on the ports that Ray fixes
        cluster.stop()
    counted = run(KILLS, tmp_path)
    assert counted["kills"] == KILLS
    assert counted["answered"] > 0
    assert counted["processes"] > 5 * KILLS
