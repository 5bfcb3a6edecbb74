"""The verbs that talk to a server, against the real admin application in this process: output, exit codes, retries."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adakron import Adapter
from server.cli import main
from server.client import AdaKron
from tests.server.fakes import House, tiny_adapter, with_broken_tensor
from tests.server.in_process import InProcess, Server, broken, running, status

ONE, TWO, THREE = (tiny_adapter(seed) for seed in (1, 2, 3))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in this process, which every client of httpx reaches, whatever address it is given."""
    with running(tmp_path / "house") as opened:
        real = httpx.Client

        def connected(**options: Any) -> httpx.Client:
            return real(**{**options, "transport": opened.wire})

        monkeypatch.setattr(httpx, "Client", connected)
        monkeypatch.setattr("server.client.exchange.FIRST_PAUSE_S", 0.0)
        yield opened


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


@pytest.fixture
def run(wire: InProcess, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run("list") gives exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]


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
    assert '"2": 10' in out
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
def test_malformed_weight_is_refused_by_the_command_line(run: Run, weight: str) -> None:
    with pytest.raises(SystemExit):
        run("split", "x", weight)


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
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "ADAPTER_NOT_FOUND" in err


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
    assert run("sync", folder, "--apply")[0] == 1
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
    assert (code, "ADAKRON_URL" in err, err.count("\n")) == (1, True, 1)


def test_key_goes_into_the_header_and_nowhere_else(run: Run, wire: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_API_KEY", "ad_secret")
    monkeypatch.setenv("ADAKRON_URL", "http://elsewhere:8001")
    run("list")
    assert wire.requests[0].headers["authorization"] == "Bearer ad_secret"
    assert str(wire.requests[0].url) == "http://elsewhere:8001/v1/adapters?limit=200"
    run("list", "--url", "http://third:1")
    assert wire.requests[1].url.host == "third"
