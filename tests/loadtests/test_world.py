from pathlib import Path

import httpx
import pytest

from loadtests.checker import Verdict
from loadtests.texts import made_up_texts
from loadtests.world import EXAMPLES, World
from tests.loadtests.artefact import artefact_bytes
from tests.loadtests.fake_server import FIXED, FakeServer, serving


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(artefact_bytes())
    return tmp_path


def prepared(artefacts: Path, fake: FakeServer | None = None) -> World:
    with serving(fake or FakeServer()) as url:
        return World.prepare(url, artefacts, made_up_texts(1, 20))


def test_prepare_lists_the_adapters_and_records_their_answers(artefacts: Path) -> None:
    world = prepared(artefacts)
    assert [target.name for target in world.targets] == sorted(FIXED)
    assert len(world.checker._references) == len(world.workload.probes())


def test_prepare_refuses_a_server_that_answers_wrongly_at_rest(artefacts: Path) -> None:
    fake = FakeServer()
    fake.fail_every = 3
    with pytest.raises(httpx.HTTPStatusError):
        prepared(artefacts, fake)


def test_prepare_without_artefacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepared(tmp_path)


def test_verdicts_are_counted_and_named(artefacts: Path) -> None:
    world = prepared(artefacts)
    words = [
        world.note(Verdict(), 200),
        world.note(Verdict(is_absent=True), 404),
        world.note(Verdict(fault="HTTP 429"), 429),
        world.note(Verdict(fault="HTTP 500"), 500),
        world.note(Verdict(wrong_rows=("a", "b")), 200),
    ]
    assert words == ["ok", "absent", "refused", "failed", "wrong"]
    outcome = world.outcome(["KeyError (2 times)"])
    assert outcome["wrong_rows"] == 2
    assert outcome["faults"] == {"HTTP 429": 1, "HTTP 500": 1}
    assert outcome["exceptions"] == ["KeyError (2 times)"]


def test_wrong_rows_are_all_counted_and_some_of_them_kept(artefacts: Path) -> None:
    world = prepared(artefacts)
    for _ in range(5):
        world.note(Verdict(wrong_rows=tuple("abcdefgh")), 200)
    assert world.wrong_rows == 40
    assert len(world.wrong_examples) == EXAMPLES
