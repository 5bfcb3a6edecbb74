from collections import Counter
from random import Random
from typing import Any

import pytest

from loadtests.artefacts import SignatureMaker
from loadtests.registrar import WRITE_KINDS, Registrar, Write
from tests.loadtests.artefact import artefact_bytes
from tests.loadtests.fake_server import FakeServer


@pytest.fixture
def registrar() -> Registrar:
    return Registrar(SignatureMaker(artefact_bytes()), ["load/x", "load/y"])


def good_reply(write: Write, version: int = 1) -> dict[str, Any]:
    sha256 = write.change.signature.sha256 if write.change and write.change.signature else None
    return {"name": write.name, "version": version, "sha256": sha256, "active": True, "lagging": []}


def test_absent_names_are_registered_first(registrar: Registrar) -> None:
    for name in ("load/x", "load/y"):
        write = registrar.plan(Random(1), 1.0)
        assert (write.kind, write.name, write.method, write.path) == ("register", name, "PUT", f"/v1/adapters/{name}")
        assert registrar.judge(write, 201, good_reply(write), 2.0) is None
    assert registrar.live() == ["load/x", "load/y"]


def test_every_kind_of_write_comes_up_and_a_good_server_passes_them_all(registrar: Registrar) -> None:
    fake, rng, kinds = FakeServer(), Random(1), Counter[str]()
    for step in range(300):
        write = registrar.plan(rng, step)
        body = write.data if write.json is None else b'{"version": %d}' % write.json["version"]
        status, reply = fake.handle(write.method, write.path, {}, body or b"")
        assert registrar.judge(write, status, reply, step + 0.5) is None
        kinds[write.kind] += 1
        timeline = registrar.timelines[write.name]
        (served,) = timeline.possible(step + 0.6, step + 0.7)
        assert (served is not None) is (write.name in fake.active)
    assert all(kinds[kind] > 15 for kind in WRITE_KINDS)


def test_a_confirmed_change_is_settled(registrar: Registrar) -> None:
    write = registrar.plan(Random(1), 1.0)
    registrar.judge(write, 201, good_reply(write, version=7), 2.0)
    assert write.change
    assert registrar.timelines["load/x"].possible(2.0, 3.0) == [write.change.signature]
    assert write.change.signature
    assert registrar.timelines["load/x"].version(write.change.signature.sha256) == 7


def test_a_change_that_replicas_lag_behind_is_not_settled(registrar: Registrar) -> None:
    write = registrar.plan(Random(1), 1.0)
    assert registrar.judge(write, 202, good_reply(write), 2.0) is None
    assert None in registrar.timelines["load/x"].possible(3.0, 4.0)


def test_a_refused_change_never_was(registrar: Registrar) -> None:
    write = registrar.plan(Random(1), 1.0)
    fault = registrar.judge(write, 422, {"error": {"code": "SHAPE"}}, 2.0)
    assert fault
    assert "expected HTTP (201, 202); got 422" in fault
    assert registrar.live() == []


@pytest.mark.parametrize("status", [0, 500, 503])
def test_a_change_whose_fate_is_unknown_stays_possible(registrar: Registrar, status: int) -> None:
    write = registrar.plan(Random(1), 1.0)
    assert registrar.judge(write, status, None, 2.0)
    assert len(registrar.timelines["load/x"].possible(3.0, 4.0)) == 2


@pytest.mark.parametrize("member", ["name", "sha256", "active"])
def test_a_reply_about_something_else_is_a_fault(registrar: Registrar, member: str) -> None:
    write = registrar.plan(Random(1), 1.0)
    assert registrar.judge(write, 201, {**good_reply(write), member: "other"}, 2.0)


def test_a_broken_upload_that_is_taken_is_a_fault() -> None:
    registrar = Registrar(SignatureMaker(artefact_bytes()), ["load/x"])
    write = registrar.plan(Random(1), 0.0)
    registrar.judge(write, 201, good_reply(write), 0.5)
    rng = Random(1)
    while (write := registrar.plan(rng, 1.0)).kind != "broken upload":
        registrar.judge(write, 409, None, 1.0)
    before = registrar.timelines["load/x"].possible(0, 9)
    assert registrar.judge(write, 422, {}, 2.0) is None
    assert registrar.judge(write, 201, good_reply(write), 2.0)
    assert registrar.timelines["load/x"].possible(0, 9) == before


def test_a_roll_back_names_a_version_that_is_kept_and_not_active() -> None:
    registrar = Registrar(SignatureMaker(artefact_bytes()), ["load/x"])
    rng, versions = Random(1), dict[int, str]()
    for step in range(1, 400):
        write = registrar.plan(rng, step)
        if write.kind == "activate":
            assert write.json
            assert write.change
            assert write.change.signature
            assert versions[write.json["version"]] == write.change.signature.sha256
            return
        registrar.judge(
            write,
            422 if write.kind == "broken upload" else 200 + (write.kind == "register"),
            good_reply(write, step),
            step,
        )
        if write.kind == "delete":
            versions.clear()
        elif write.change and write.change.signature:
            versions[step] = write.change.signature.sha256
    pytest.fail("no roll-back in 400 writes")


def test_farewell_deletes_all_that_is_registered(registrar: Registrar) -> None:
    write = registrar.plan(Random(1), 1.0)
    registrar.judge(write, 201, good_reply(write), 2.0)
    deletions = list(registrar.farewell(3.0))
    assert [(deletion.method, deletion.path) for deletion in deletions] == [("DELETE", "/v1/adapters/load/x")]


def test_a_registration_that_was_cut_off_may_be_absent_at_the_farewell_and_an_acknowledged_one_not(
    registrar: Registrar,
) -> None:
    known = registrar.plan(Random(1), 1.0)
    registrar.judge(known, 201, good_reply(known), 2.0)
    cut_off = registrar.plan(Random(1), 3.0)
    deletions = {write.name: write for write in registrar.farewell(4.0)}
    absent = {"error": {"code": "ADAPTER_NOT_FOUND"}}
    assert registrar.judge(deletions[cut_off.name], 404, absent, 5.0) is None
    assert registrar.judge(deletions[known.name], 404, absent, 5.0) is not None


def test_the_question_after_a_change_asks_the_bare_name(registrar: Registrar) -> None:
    call = registrar.question("load/x")
    assert call.body["adapter"] == "load/x"
    assert [ask.adapter for ask in call.asks] == ["load/x"]
