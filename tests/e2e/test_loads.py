"""Bites of the long runs of `loadtests`, on the shared server. In full they are commands, and dated in docs."""

from typing import Any

import httpx

from loadtests import churn
from loadtests.adapter_maker import AdapterMaker
from loadtests.churn import Churn
from loadtests.cycles import Cycles
from loadtests.journal import Journal
from loadtests.server_process import RunningServer
from tests.e2e.cluster import Server

CHURN_ROWS = 2_000  # a hundredth: about ten seconds
CYCLES = 60  # what ten seconds allow, the warm-up included


async def test_every_answer_is_its_adapters_while_adapters_change(server: Server, info: dict[str, Any]) -> None:
    journal = Journal(None, {})
    limits = httpx.Limits(max_connections=churn.READERS + churn.WRITERS)
    async with httpx.AsyncClient(base_url=server.url, timeout=churn.TIMEOUT_S, limits=limits) as client:
        await Churn(client, AdapterMaker(info), journal, seed=1).run(CHURN_ROWS)
    assert journal.faults == []
    assert journal.counts["rows"] >= CHURN_ROWS
    assert churn.changes(journal) > 2 * churn.WRITERS * churn.NAMES_A_WRITER


def test_registering_and_deleting_leaves_nothing(server: Server, info: dict[str, Any]) -> None:
    journal = Journal(None, {})
    assert server.process is not None
    running = RunningServer(server.url, server.process.pid, server.state_dir)
    work = Cycles(running, AdapterMaker(info), journal)
    work.warm_up(CYCLES // 3)
    work.run(CYCLES - CYCLES // 3)
    assert journal.faults == []
    roles = sorted(process.role for process in work.before.values() if process.is_ours)
    assert roles == ["admin", "clf", "clf"]
