"""The verbs that talk to a server, against the real admin application in this process: output, exit codes, retries."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from adakron import Adapter
from server.client import AdaKron
from tests.server.cli_runs import Run
from tests.server.fakes import House, tiny_adapter, with_broken_tensor
from tests.server.in_process import InProcess, Server, broken, status

ONE, TWO, THREE = (tiny_adapter(seed) for seed in (1, 2, 3))


@pytest.fixture
def house(server: Server) -> House:
    return server.house


@pytest.fixture
def wire(server: Server) -> InProcess:
    return server.wire


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ONE.write(tmp_path / "dir" / "one")
    TWO.write(tmp_path / "dir" / "acme" / "two")
    return tmp_path / "dir"


def test_push_of_a_folder_takes_its_name_and_says_what_is_active(run: Run, house: House, folder: Path) -> None:
    assert run("push", folder / "one") == (0, f"one@1 is active ({ONE.sha256[:12]})\n", "")
    assert run("push", folder / "one" / "adapter_model.safetensors", "acme/x", "--stage")[1].startswith(
        "acme/x@1 is staged"
    )
    assert house.catalogue.snapshot().adapters["acme/x"].active is None


def test_push_of_a_bad_file_says_why_in_one_line(run: Run, folder: Path) -> None:
    (folder / "one" / "adapter_model.safetensors").write_bytes(with_broken_tensor(ONE))
    code, out, err = run("push", folder / "one")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("adakron: NON_FINITE_TENSOR: ")


def test_push_of_no_file_says_which(run: Run, tmp_path: Path) -> None:
    code, _, err = run("push", tmp_path / "nothing")
    assert code == 1
    assert "nothing" in err


def test_list_shows_every_adapter(run: Run, folder: Path) -> None:
    for name in ("b", "a", "c"):
        run("push", folder / "one", name)
    code, out, _ = run("list")
    assert (code, [line.split("\t")[:2] for line in out.splitlines()]) == (0, [["a", "@1"], ["b", "@1"], ["c", "@1"]])
    assert [json.loads(line)["name"] for line in run("list", "--json")[1].splitlines()] == ["a", "b", "c"]


def test_show_has_versions_and_history(run: Run, folder: Path) -> None:
    run("push", folder / "one", "x")
    run("push", folder / "acme" / "two", "x", "--stage")
    run("split", "x", "1=90", "2=10", "--shadow", "2")
    out = run("show", "x")[1]
    assert "@1\tactive" in out
    assert "@2\tkept" in out
    assert "split 90 % to @1, 10 % to @2; shadow @2" in out
    assert "split" in out.splitlines()[-3]
    assert json.loads(run("show", "x", "--json")[1])["version"] == 1


def test_activate_and_rollback(run: Run, folder: Path) -> None:
    run("push", folder / "one", "x")
    run("push", folder / "acme" / "two", "x")
    assert run("rollback", "x")[1].startswith("x@1 is active")
    assert run("rollback", "x")[1].startswith("x@2 is active")
    assert run("activate", "x", 1)[1].startswith("x@1 is active")
    assert run("rollback", "x", "--to", 2)[1].startswith("x@2 is active")


def test_rollback_of_a_name_with_one_version_is_refused(run: Run, folder: Path) -> None:
    run("push", folder / "one", "x")
    code, _, err = run("rollback", "x")
    assert (code, "--to" in err) == (1, True)


def test_split_says_the_shares(run: Run, folder: Path) -> None:
    run("push", folder / "one", "x")
    run("push", folder / "acme" / "two", "x", "--stage")
    assert run("split", "x", "1=75", "2=25")[1] == "x: 75 % to @1, 25 % to @2\n"
    assert run("split", "x", "--shadow", "2")[1] == "x: 100 % to @1; shadow @2\n"
    assert run("split", "x", "1=75")[0] == 1


@pytest.mark.parametrize("weight", ["1", "1=", "=1", "01=5", "1=1000", "a=5", "1=-5"])
def test_malformed_weight_is_wrong_usage(run: Run, weight: str) -> None:
    code, _, err = run("split", "x", weight)
    assert (code, err.count("\n")) == (2, 1)


def test_rm_of_a_version_and_of_the_name(run: Run, house: House, folder: Path) -> None:
    run("push", folder / "one", "x")
    run("push", folder / "acme" / "two", "x")
    assert f"disk {ONE.size_bytes:,}" in run("rm", "x@1")[1]
    assert run("rm", "x@2")[0] == 1
    assert run("rm", "x")[1].startswith("removed x @2; bytes freed: device ")
    assert house.files() == []


def test_export_writes_the_artefact_that_was_pushed(run: Run, folder: Path, tmp_path: Path) -> None:
    run("push", folder / "one", "x")
    run("push", folder / "acme" / "two", "x")
    run("export", "x", tmp_path / "out")
    assert Adapter.from_folder(tmp_path / "out").sha256 == TWO.sha256
    run("export", "x@1", tmp_path / "out")
    assert Adapter.from_folder(tmp_path / "out").sha256 == ONE.sha256


@pytest.mark.parametrize("words", [("show", "x"), ("activate", "x", "1"), ("rm", "x"), ("export", "x", "out")])
def test_unknown_adapter_is_said_in_one_line(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "ADAPTER_NOT_FOUND" in err


def test_unknown_adapter_is_suggested_a_known_one(run: Run, folder: Path) -> None:
    run("push", folder / "one", "tickets")
    for words in (("show", "tikets"), ("rollback", "tikets"), ("rm", "tickts@1"), ("export", "tickes", "out")):
        assert "did you mean 'tickets'?" in run(*words)[2]
    assert "did you mean" not in run("show", "mood")[2]


def test_unknown_version_is_not_found_and_a_malformed_name_is_wrong_usage(run: Run, folder: Path) -> None:
    run("push", folder / "one", "x")
    assert run("activate", "x", 7)[0] == 3
    assert run("rm", "x@nothing")[0] == 2


def test_sync_shows_first_and_changes_nothing(run: Run, house: House, folder: Path) -> None:
    run("push", folder / "one", "surplus")
    generation = house.catalogue.generation()
    code, out, _ = run("sync", folder)
    assert (code, out.splitlines()) == (
        0,
        ["add acme/two", "add one", "0 unchanged, 1 on the server alone; nothing was changed: --apply does it"],
    )
    assert "remove surplus" in run("sync", folder, "--prune")[1]
    assert house.catalogue.generation() == generation


def test_sync_makes_the_server_match(run: Run, house: House, folder: Path) -> None:
    run("push", folder / "one", "surplus")
    run("push", folder / "acme" / "two", "one")
    assert run("sync", folder, "--apply")[1] == "2 changed, 0 unchanged, 0 failed\n"
    adapters = house.catalogue.snapshot().adapters
    assert {name: entry.versions[entry.active or 0].sha256 for name, entry in adapters.items()} == {
        "one": ONE.sha256,
        "acme/two": TWO.sha256,
        "surplus": ONE.sha256,
    }
    assert run("sync", folder, "--apply", "--prune")[1] == "1 changed, 2 unchanged, 0 failed\n"
    assert list(house.catalogue.snapshot().adapters) == ["acme/two", "one"]
    assert run("sync", folder, "--apply", "--prune")[1] == "0 changed, 2 unchanged, 0 failed\n"


def test_sync_tells_what_failed_and_does_the_rest(run: Run, house: House, folder: Path) -> None:
    (folder / "one" / "adapter_model.safetensors").write_bytes(with_broken_tensor(ONE))
    code, out, err = run("sync", folder, "--apply")
    assert (code, out) == (1, "1 changed, 0 unchanged, 1 failed\n")
    assert "adakron: one: NON_FINITE_TENSOR" in err
    assert list(house.catalogue.snapshot().adapters) == ["acme/two"]


def test_sync_sends_again_what_there_was_no_time_for(
    run: Run, house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter([-1.0, -1.0, 15.0, 15.0])
    monkeypatch.setattr("server.bulk.BEGIN_WITHIN_S", -1.0)
    real = AdaKron.put_many

    def put_many(self: Any, artefacts: Any) -> Any:
        monkeypatch.setattr("server.bulk.BEGIN_WITHIN_S", next(waits))
        return real(self, artefacts)

    monkeypatch.setattr(AdaKron, "put_many", put_many)
    assert run("sync", folder, "--apply")[1] == "2 changed, 0 unchanged, 0 failed\n"


def test_sync_of_many_goes_in_batches(
    run: Run, house: House, wire: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.sync.BATCH_ARTEFACTS", 4)
    for n in range(10):
        ONE.write(tmp_path / "many" / f"n{n}")
    assert run("sync", tmp_path / "many", "--apply")[1] == "10 changed, 0 unchanged, 0 failed\n"
    assert [r.method for r in wire.requests] == ["GET", "POST", "POST", "POST"]


def test_sync_of_a_folder_with_an_impossible_name_changes_nothing(run: Run, house: House, folder: Path) -> None:
    (folder / "one").rename(folder / "ONE")
    assert run("sync", folder, "--apply")[0] == 2
    assert house.catalogue.generation() == 0


def test_change_that_fails_on_its_way_is_sent_again_and_done_once(run: Run, wire: InProcess, folder: Path) -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        wire.answer(request)  # it was done, and nobody heard of it
        raise httpx.ReadError("connection reset")

    wire.first = [status(503, **{"retry-after": "0"}), status(500), lost]
    assert run("push", folder / "one")[1].startswith("one@1 is active")
    changes = [request for request in wire.requests if request.method == "PUT"]
    assert len({request.headers["idempotency-key"] for request in changes}) == 1


def test_no_server_is_said_in_one_line(run: Run, wire: InProcess) -> None:
    wire.first = [broken(httpx.ConnectError)] * 4
    code, _, err = run("list")
    assert (code, "ADAKRON_URL" in err, err.count("\n")) == (4, True, 1)


def test_key_goes_into_the_header_and_nowhere_else(run: Run, wire: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_API_KEY", "ad_secret")
    monkeypatch.setenv("ADAKRON_URL", "http://elsewhere:8001")
    run("list")
    assert wire.requests[0].headers["authorization"] == "Bearer ad_secret"
    assert str(wire.requests[0].url) == "http://elsewhere:8001/v1/adapters?limit=200"
    run("list", "--url", "http://third:1")
    assert wire.requests[1].url.host == "third"


def test_json_is_what_the_server_answered(run: Run, folder: Path, tmp_path: Path) -> None:
    def answer(*words: object) -> dict[str, Any]:
        code, out, _ = run(*words, "--json")
        found: dict[str, Any] = json.loads(out)
        assert code == 0
        return found

    assert answer("push", folder / "one", "x")["version"] == 1
    assert answer("push", folder / "acme" / "two", "x", "--stage")["active"] is False
    assert answer("activate", "x", 2)["version"] == 2
    assert answer("rollback", "x")["version"] == 1
    assert answer("split", "x", "1=75", "2=25")["weights"] == {"1": 75, "2": 25}
    assert answer("export", "x@2", tmp_path / "out") == {
        "name": "x",
        "version": 2,
        "sha256": TWO.sha256,
        "folder": str(tmp_path / "out"),
    }
    assert answer("rm", "x")["versions"] == [1, 2]
    assert answer("sync", folder)["add"] == ["acme/two", "one"]
    assert answer("sync", folder, "--apply") == {"changed": 2, "unchanged": 0, "failed": {}}


def test_list_on_a_terminal_is_a_table(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("push", folder / "one", "x")
    monkeypatch.setattr("server.cli_adapters.is_watched", lambda: True)
    out = run("list")[1]
    assert out.splitlines()[0].split()[:2] == ["name", "version"]
    assert "\t" not in out


def test_names_are_completed_from_the_server(
    run: Run, house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", folder / "one", "tickets")
    run("push", folder / "one", "mood")
    monkeypatch.setenv("_ADAKRON_COMPLETE", "complete_bash")
    for line, expected in (
        ("adakron show ti", ["tickets"]),
        ("adakron rollback ", ["mood", "tickets"]),
        ("adakron classify -a m", ["mood"]),
        ("adakron sh", ["show"]),
    ):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        assert run()[1].split() == expected, line


def test_completion_without_a_server_offers_nothing(run: Run, wire: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.first = [broken(httpx.ConnectError)]
    monkeypatch.setenv("_ADAKRON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "adakron show t")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run()[1].strip() == ""
    assert wire.first == []
