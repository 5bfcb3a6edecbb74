"""Phases with and without registrations: what is counted in them, and when they fall short."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests import beside
from loadtests.adapter_maker import AdapterMaker
from loadtests.artefacts import SignatureMaker
from loadtests.beside import Beside, Phase, shortfalls, summary, table
from loadtests.targets import Target
from tests.loadtests.artefact import artefact_bytes
from tests.loadtests.in_process import in_process_server


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "SETTLE_S", 0.0)


async def phases(state_dir: Path) -> list[Phase]:
    async with in_process_server(state_dir) as (_, client):
        maker = AdapterMaker((await client.get("/v1/info")).json(), num_labels=19)
        (await client.put("/v1/adapters/steady", content=maker.make(500).data)).raise_for_status()
        targets = [Target("steady", 1, maker.make(500).signature.sha256, frozenset(), "single", takes_pair=False)]
        work = Beside(client, targets, maker, calls_a_s=20, registrations_a_s=8, seconds=0.5)
        found = [await work.alone(), await work.beside(), await work.registrations(3)]
        assert [entry["name"] for entry in (await client.get("/v1/adapters")).json()["adapters"]] == ["steady"]
    return found


async def test_phases_hold_the_calls_and_registrations_that_were_due(tmp_path: Path) -> None:
    found = await phases(tmp_path)
    assert [(p.kind, len(p.latencies_s), len(p.servable_s)) for p in found] == [("A", 10, 0), ("B", 10, 4), ("C", 0, 3)]
    assert [words for phase in found for words in phase.faults] == []
    assert all(0 < value < 30 for phase in found for value in phase.latencies_s + phase.servable_s)


@pytest.mark.parametrize(
    ("put_status", "asked", "words"),
    [
        (503, {}, "was answered 503"),
        (201, {"status_code": 404}, "was registered, and answers 404"),
        (201, {"json": {"sha256": "0" * 64, "results": [{"label": "other"}]}}, "expected"),
    ],
)
async def test_registration_that_is_refused_or_not_served_at_once_is_a_fault(
    put_status: int, asked: dict[str, Any], words: str
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(put_status)
        return httpx.Response(**{"status_code": 200, **asked})

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://test") as client:
        maker = SignatureMaker(artefact_bytes())
        work = Beside(client, [], maker, calls_a_s=1, registrations_a_s=1, seconds=1)
        faults = (await work.registrations(1)).faults
    assert faults
    assert all(words in fault for fault in faults)


def test_latency_counts_from_the_moment_a_call_was_due() -> None:
    phase = Phase("A", [0.1, 0.2, 0.3, 0.4])
    assert (phase.p(0.5), phase.p(0.99)) == (0.2, 0.4)


def phase(kind: str, worst_s: float, servable_s: float | None = None, faults: tuple[str, ...] = ()) -> Phase:
    return Phase(kind, [0.01] * 9 + [worst_s], [] if servable_s is None else [servable_s], list(faults))


def test_ratio_is_the_median_of_the_rounds() -> None:
    held = [phase("A", 0.1), phase("B", 0.11, 0.05), phase("A", 0.1), phase("B", 0.5, 0.05)]
    held += [phase("A", 0.1), phase("B", 0.1, 0.05), Phase("C", [], [0.09])]
    found = summary(held)
    assert found["ratio"] == pytest.approx(1.1)
    assert (found["servable_beside_s"], found["servable_alone_s"], found["registrations"]) == (0.05, 0.09, 4)
    assert shortfalls(found) == []


def test_what_is_not_as_wanted_is_said_with_its_figure() -> None:
    held = [phase("A", 0.1), phase("B", 0.2, 0.05, ("broken",)), Phase("C", [], [0.25])]
    short = shortfalls(summary(held))
    assert len(short) == 3
    assert "1 faults: broken" in short[0]
    assert "2.00 times" in short[1]
    assert "250 ms" in short[2]
    assert len(table(held).splitlines()) == 5
