"""Churn on the server's own code, without Ray: right ones pass, and planted bugs of several kinds are found."""

import json
from pathlib import Path
from typing import Any

import pytest

from adakron.engine import Engine
from adakron.residents import Resident, Residents
from loadtests import churn
from loadtests.adapter_maker import AdapterMaker
from loadtests.churn import Churn, mixed_versions
from loadtests.journal import Journal
from server.replica import Applied, Replica
from tests.loadtests.in_process import in_process_server

ROWS = 1_200


@pytest.fixture(autouse=True)
def _in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn, "ROWS_A_CHANGE", 10)
    monkeypatch.setattr(churn, "NAMES_A_WRITER", 3)


async def churned(state_dir: Path, rows: int = ROWS) -> Journal:
    journal = Journal(None, {})
    async with in_process_server(state_dir) as (_, client):
        info = (await client.get("/v1/info")).json()
        await Churn(client, AdapterMaker(info, num_labels=19), journal, seed=3).run(rows)
        assert (await client.get("/v1/adapters")).json()["adapters"] == [], "what was registered is left"
    return journal


async def test_right_server_passes_with_every_kind_of_change(tmp_path: Path) -> None:
    journal = await churned(tmp_path)
    assert journal.faults == []
    assert journal.counts["rows"] >= ROWS
    kinds = ("register", "activate", "delete", "broken upload")
    assert min(journal.counts[kind] for kind in kinds) > 0, journal.counts
    assert journal.counts["cancelled calls"] > 0


async def test_slot_that_is_reused_while_a_call_holds_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freed at once instead of after the last user: the next upload takes the slot that rows are still run through."""

    def free_at_once(self: Residents, resident: Resident) -> int:
        resident.retired = False  # so that the last user does not free it again
        assert resident.placement is not None
        return self._bank.remove(resident.placement)

    monkeypatch.setattr(Residents, "_retire", free_at_once)
    journal = await churned(tmp_path, 4 * ROWS)
    assert journal.counts["wrong"] > 0, journal.counts


async def test_answer_through_the_slot_of_a_neighbour_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_lease, leased = Engine.lease, []

    def lease(self: Engine, key: str | None) -> Any:
        mine = real_lease(self, key)
        leased.append(mine.resident)
        if key is not None and len(leased) % 200 == 0:
            other = next(one for one in reversed(leased) if one.key not in (None, key) and one.placement)
            mine.resident = Resident(key, mine.resident.config, other.placement)
            mine.resident.users = 1
        return mine

    monkeypatch.setattr(Engine, "lease", lease)
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
