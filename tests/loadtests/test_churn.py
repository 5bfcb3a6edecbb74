"""Churn on the server's own code, without Ray: right ones pass, and planted bugs of several kinds are found."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adakron.resident import Lease
from adakron.residents import Residents
from loadtests import churn
from loadtests.adapter_maker import AdapterMaker
from loadtests.churn import Churn, mixed_versions
from loadtests.journal import Journal
from server.errors import NotReadyError
from server.replica import Applied, Replica
from tests.loadtests.in_process import in_process_server

ROWS = 1_200
BUDGET_BYTES = 60_000  # for fewer adapters than there are names


@pytest.fixture(autouse=True)
def _in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn, "ROWS_A_CHANGE", 10)
    monkeypatch.setattr(churn, "NAMES_A_WRITER", 3)
    monkeypatch.setattr(churn, "READERS", 3)


async def churned(state_dir: Path, *, device_budget_bytes: int | None = None) -> Journal:
    journal = Journal(None, {})
    async with in_process_server(state_dir, device_budget_bytes=device_budget_bytes) as (server, client):
        info = (await client.get("/v1/info")).json()
        await Churn(client, AdapterMaker(info, num_labels=19), journal, seed=3).run(ROWS)
        assert (await client.get("/v1/adapters")).json()["adapters"] == [], "what was registered is left"
        figures = [plane._engine.residency() for plane in server.planes]
    assert sum(one.leases + one.pins for one in figures) == 0
    journal.counts["evictions"] = sum(one.device_evictions for one in figures)
    return journal


async def test_right_server_passes_with_every_kind_of_change(tmp_path: Path) -> None:
    journal = await churned(tmp_path)
    assert journal.faults == []
    assert journal.counts["rows"] >= ROWS
    assert min(journal.counts["register"], journal.counts["delete"]) > 0, journal.counts
    assert journal.counts["activate"] + journal.counts["broken upload"] > 0, journal.counts
    assert journal.counts["cancelled calls"] > 0


async def test_evictions_change_no_answer(tmp_path: Path) -> None:
    journal = await churned(tmp_path, device_budget_bytes=BUDGET_BYTES)
    assert journal.faults == []
    assert journal.counts["evictions"] > 0


async def test_slot_that_has_another_tenant_since_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that was evicted and came back elsewhere is run through the slot where it used to be."""
    remembered: dict[tuple[int, str], Any] = {}

    def view(self: Residents, leases: Sequence[Lease]) -> Any:
        tenants = [
            one.resident.tenant if one.key is None else remembered.setdefault((id(self), one.key), one.resident.tenant)
            for one in leases
        ]
        return self._bank.view(tenants)

    monkeypatch.setattr(Residents, "view", view)
    journal = await churned(tmp_path, device_budget_bytes=BUDGET_BYTES)
    assert journal.counts["wrong"] > 0, journal.counts


async def test_answer_through_the_slot_of_a_neighbour_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = itertools.count(1)

    def view(self: Residents, leases: Sequence[Lease]) -> Any:
        tenants = [lease.resident.tenant for lease in leases]
        return self._bank.view(tenants if next(batches) % 20 else tenants[1:] + tenants[:1])

    monkeypatch.setattr(Residents, "view", view)
    journal = await churned(tmp_path)
    assert journal.counts["wrong"] > 0, journal.counts


async def test_replica_that_acknowledges_changes_it_makes_later_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_apply = Replica.apply

    async def apply(self: Replica, generation: int) -> Applied:
        if self.replica_id == "r1" and generation % 5:
            return Applied(self.replica_id, generation, 0)
        return await real_apply(self, generation)

    monkeypatch.setattr(Replica, "apply", apply)
    journal = await churned(tmp_path)
    assert journal.faults != []


async def test_server_that_takes_nothing_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def prove(self: Replica, sha256: str) -> Any:
        raise NotReadyError("no")

    monkeypatch.setattr(Replica, "prove", prove)
    monkeypatch.setattr(churn, "STALLED_S", 0.5)
    journal = await churned(tmp_path)
    assert any("the round ended after 0 of" in words for words in journal.faults)


def test_two_versions_of_one_name_in_one_call_are_mixed() -> None:
    one, two = {"adapter": "a", "version": 1}, {"adapter": "a", "version": 2}
    assert mixed_versions({"results": [one, {"adapter": "b", "version": 2}, one]}) == []
    assert mixed_versions({"results": [one, two]}) == ["a was versions [1, 2] in one call"]


def test_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "churn.json"
    journal = Journal(out, {"command": "churn"})
    journal.counts["rows"] = 100
    journal.fault("wrong", "words")
    journal.save()
    again = Journal(out, {"command": "churn"})
    assert (again.counts["rows"], again.faults) == (100, ["wrong: words"])
    assert json.loads(out.read_text())["conditions"]["cores"]


def test_table_says_zero_where_nothing_was_wrong() -> None:
    assert "| wrong | 0 |" in churn.table(Journal(None, {}))
