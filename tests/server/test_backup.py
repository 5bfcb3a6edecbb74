"""Backup and restore: all of a server's state, from any kind of store to any other, and never half of it."""

import json
import shutil
from pathlib import Path

import pytest

from adakron import Adapter
from server import dump, state
from server.access.store import KeyStore
from server.backup import Manifest, back_up
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.cli import main
from server.database import sqlite_url
from server.errors import ConflictError, StorageUnavailableError
from server.records import RESTORED_LEAP, Once, Origin
from server.remote_blobs import open_blobs
from server.restore import check, restore
from server.split import Split
from tests.server.fakes import tiny_adapter
from tests.server.postgres import new_database


def nothing(*told: object) -> None:
    pass


def take(house: "House", target: Path) -> Manifest:
    return back_up(house.url, house.blobs, target, begin=nothing, advance=nothing)


def bring_back(source: Path, house: "House", *, force: bool = False) -> int:
    return restore(source, house.folder, house.url, house.blobs, force=force, begin=nothing, advance=nothing).generation


class House:
    """The state of one server."""

    def __init__(self, folder: Path, url: str | None = None, blobs: BlobStore | None = None) -> None:
        state.make_folder(folder)
        self.folder = folder
        self.url = url or sqlite_url(folder / "catalogue.sqlite")
        self.blobs = blobs or BlobStore(folder / "blobs")

    def open(self) -> Catalogue:
        return Catalogue(self.url, is_writer=True)

    def put(self, name: str, seed: int, once: Once | None = None) -> str:
        adapter = tiny_adapter(seed)
        with self.blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        catalogue = self.open()
        catalogue.add_version(
            name,
            adapter.sha256,
            adapter.size_bytes,
            config=adapter.config.to_json(),
            origin=Origin(key_id="k1"),
            once=once,
        )
        catalogue.close()
        return adapter.sha256

    def rows(self) -> list[dump.Line]:
        with dump.held_still(self.url) as lines:
            return list(lines)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Names, one of them deleted, a split, keys, one of them revoked, and a request that may be repeated."""
    full = House(tmp_path / "house")
    full.put("acme/a", 1)
    full.put("acme/a", 2, Once("key", "0" * 64))
    full.put("b", 3)
    catalogue = full.open()
    catalogue.split("acme/a", Split({1: 90, 2: 10}))
    full.put("gone", 4)
    catalogue.delete_name("gone")
    catalogue.note_uses({"b": 7})
    catalogue.close()
    keys = KeyStore(full.url, is_writer=True)
    keys.create(["admin"], note="for the build")
    _, ended = keys.create(["read"], prefix="acme/")
    keys.revoke(ended.id)
    keys.close()
    return full


def without_counters(rows: list[dump.Line]) -> list[dump.Line]:
    return [line for line in rows if line.table != "meta"]


def test_restored_state_is_what_was_backed_up(house: House, tmp_path: Path) -> None:
    manifest = take(house, tmp_path / "backup")
    assert (manifest.names, manifest.versions, manifest.keys, manifest.blobs) == (2, 3, 2, 3)
    assert check(tmp_path / "backup", begin=nothing, advance=nothing) == manifest
    other = House(tmp_path / "other")
    generation = bring_back(tmp_path / "backup", other)
    assert generation == manifest.generation + RESTORED_LEAP
    assert without_counters(other.rows()) == without_counters(house.rows())
    with state.locked(other.folder), state.opened(other.url, other.blobs) as catalogue:
        for sha256 in catalogue.snapshot().sha256s():
            Adapter.from_bytes(other.blobs.read(sha256))


@pytest.mark.parametrize("to_postgres", [True, False])
def test_restores_from_one_kind_of_store_to_the_other(
    house: House, tmp_path: Path, postgres: str, s3: str, to_postgres: bool
) -> None:
    remote = open_blobs(f"{s3}/backup-{to_postgres}", tmp_path / "remote" / "blobs", cache_budget_bytes=2**20)
    shared = House(tmp_path / "shared", new_database(postgres), remote)
    take(house, tmp_path / "backup")
    bring_back(tmp_path / "backup", shared)
    assert without_counters(shared.rows()) == without_counters(house.rows())
    if to_postgres:  # it goes on numbering the log behind what was brought
        shared.put("c", 5)
        assert [line.row["name"] for line in shared.rows() if line.table == "events"][-1] == "c"
        return
    back = House(tmp_path / "back")
    take(shared, tmp_path / "second")
    bring_back(tmp_path / "second", back)
    assert without_counters(back.rows()) == without_counters(house.rows())
    assert {sha256 for sha256, _ in back.blobs.stored()} == {
        line.row["sha256"] for line in back.rows() if line.table == "versions" and line.row["state"] == "kept"
    }


def test_no_generation_is_given_twice_and_an_etag_of_the_backup_still_holds(house: House, tmp_path: Path) -> None:
    catalogue = house.open()
    kept = catalogue.snapshot().adapters["b"].generation
    take(house, tmp_path / "backup")
    lost = catalogue.activate("acme/a", 1).generation
    bring_back(tmp_path / "backup", house, force=True)
    assert catalogue.snapshot().adapters["b"].generation == kept
    assert catalogue.activate("acme/a", 1, if_match=frozenset({lost - 1, lost - 2, lost - 3})).generation > lost
    catalogue.close()


def test_key_that_was_revoked_since_does_not_come_back_to_life(house: House, tmp_path: Path) -> None:
    keys = KeyStore(house.url, is_writer=True)
    take(house, tmp_path / "backup")
    before, all_keys = keys.all()
    for key in all_keys:
        keys.revoke(key.id)
    bring_back(tmp_path / "backup", house, force=True)
    after, restored = keys.all()
    assert len(restored) == 2
    assert all(key.revoked_s is not None for key in restored)
    assert after > before + 1
    keys.close()


def test_what_holds_something_is_replaced_by_force_alone(house: House, tmp_path: Path) -> None:
    take(house, tmp_path / "backup")
    other = House(tmp_path / "other")
    other.put("precious", 9)
    before = other.rows()
    with pytest.raises(ConflictError, match="generation 1"):
        bring_back(tmp_path / "backup", other)
    assert other.rows() == before
    bring_back(tmp_path / "backup", other, force=True)
    with state.locked(other.folder), state.opened(other.url, other.blobs) as catalogue:
        assert set(catalogue.snapshot().adapters) == {"acme/a", "b"}
        assert len(list(other.blobs.stored())) == 3  # a start removes what nothing needs


def test_state_of_a_running_server_is_not_restored(house: House, tmp_path: Path) -> None:
    take(house, tmp_path / "backup")
    with state.locked(house.folder), pytest.raises(StorageUnavailableError, match="another server"):
        bring_back(tmp_path / "backup", house, force=True)


def test_lost_catalogue_is_restored_beside_its_bytes(house: House, tmp_path: Path) -> None:
    take(house, tmp_path / "backup")
    (house.folder / "catalogue.sqlite").unlink()
    bring_back(tmp_path / "backup", house)
    assert len([line for line in house.rows() if line.table == "versions"]) == 4


def test_damaged_catalogue_is_left_for_its_operator_to_move(house: House, tmp_path: Path) -> None:
    take(house, tmp_path / "backup")
    damaged = house.folder / "catalogue.sqlite"
    damaged.write_bytes(b"rot" * 5000)
    with pytest.raises(StorageUnavailableError) as caught:
        bring_back(tmp_path / "backup", house, force=True)
    assert caught.value.hint == "move it away, and restore again"
    damaged.rename(tmp_path / "damaged")
    bring_back(tmp_path / "backup", house)
    assert len([line for line in house.rows() if line.table == "versions"]) == 4


def test_what_is_deleted_while_it_is_copied_is_left_out(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, catalogue = house.blobs.read, house.open()

    def delete_first(sha256: str) -> bytes:
        if "b" in catalogue.snapshot().adapters:
            removal = catalogue.delete_name("b")
            for row in removal.versions.values():
                house.blobs.delete(row.sha256)
            house.put("new", 8)
        return read(sha256)

    monkeypatch.setattr(house.blobs, "read", delete_first)
    manifest = take(house, tmp_path / "backup")
    catalogue.close()
    assert check(tmp_path / "backup", begin=nothing, advance=nothing) == manifest
    other = House(tmp_path / "other")
    bring_back(tmp_path / "backup", other)
    assert {line.row["name"] for line in other.rows() if line.table == "adapters" and not line.row["deleted"]} == {
        "acme/a",
        "new",
    }


def test_damaged_bytes_are_not_backed_up_in_silence(house: House, tmp_path: Path) -> None:
    path = next(house.blobs._root.glob("??/*"))
    path.chmod(0o600)
    path.write_bytes(b"rot")
    with pytest.raises(StorageUnavailableError, match=f"{path.name[:12]} cannot be backed up"):
        take(house, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    house.put("again", next(seed for seed in (1, 2, 3) if tiny_adapter(seed).sha256 == path.name))
    assert take(house, tmp_path / "backup").blobs == 3  # goes on from what was there


def test_interrupted_backup_is_none_and_goes_on(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = house.blobs.read, []

    def interrupted(sha256: str) -> bytes:
        reads.append(sha256)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read(sha256)

    monkeypatch.setattr(house.blobs, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(house, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    with pytest.raises(StorageUnavailableError, match="no whole backup"):
        check(tmp_path / "backup.partial", begin=nothing, advance=nothing)
    done = next((tmp_path / "backup.partial" / "blobs").glob("??/*"))
    done.chmod(0o600)
    done.write_bytes(b"half")
    take(house, tmp_path / "backup")
    assert len(reads) == 5  # the third again, and the one that was spoiled
    check(tmp_path / "backup", begin=nothing, advance=nothing)


def test_backup_does_not_write_over_another(house: House, tmp_path: Path) -> None:
    take(house, tmp_path / "backup")
    with pytest.raises(ConflictError, match="there already"):
        take(house, tmp_path / "backup")


@pytest.mark.parametrize("part", ["manifest.json", "catalogue.jsonl", "blobs"])
def test_spoiled_backup_is_refused_and_changes_nothing(house: House, tmp_path: Path, part: str) -> None:
    take(house, tmp_path / "backup")
    path = tmp_path / "backup" / part
    path = next(path.glob("??/*")) if part == "blobs" else path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-9])
    other = House(tmp_path / "other")
    with pytest.raises(StorageUnavailableError):
        check(tmp_path / "backup", begin=nothing, advance=nothing)
    with pytest.raises(StorageUnavailableError):
        bring_back(tmp_path / "backup", other)
    assert dump.counters(other.url) is None
    state.check_not_restoring(other.folder)


@pytest.mark.parametrize("name", ["backup_format", "catalogue_format"])
def test_backup_of_another_release_is_named(house: House, tmp_path: Path, name: str) -> None:
    take(house, tmp_path / "backup")
    path = tmp_path / "backup" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 99, "more": 1}))
    with pytest.raises(StorageUnavailableError, match=f"{name} 99"):
        check(tmp_path / "backup", begin=nothing, advance=nothing)


def test_interrupted_restore_starts_no_server_and_goes_on(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take(house, tmp_path / "backup")
    other = House(tmp_path / "other")
    other.put("precious", 9)
    shutil.copy(tmp_path / "backup" / "manifest.json", tmp_path)
    mark = other.folder / state.RESTORING
    mark.write_text(json.loads((tmp_path / "manifest.json").read_text())["rows_sha256"])  # as a kill leaves it
    with pytest.raises(StorageUnavailableError, match="did not come to its end"), state.locked(other.folder):
        pass
    for words in (["keys", "list"], ["backup", str(tmp_path / "second")]):
        assert main([*words, "--state-dir", str(other.folder)]) == 1
        assert "did not come to its end" in capsys.readouterr().err
    bring_back(tmp_path / "backup", other)
    with state.locked(other.folder), state.opened(other.url, other.blobs):
        pass


def test_command_line_backs_up_checks_and_restores(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, other = tmp_path / "backup", tmp_path / "other"
    assert main(["backup", str(target), "--state-dir", str(house.folder)]) == 0
    assert "2 adapters with 3 versions, 2 keys, 3 files" in capsys.readouterr().out
    assert main(["restore", str(target), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blobs"] == 3
    assert main(["restore", str(target), "--state-dir", str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["restored_generation"] == told["generation"] + RESTORED_LEAP
    assert main(["restore", str(target), "--state-dir", str(other)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["restore", str(target), "--check", "--force"]) == 1
    assert main(["backup", str(target), "--state-dir", str(tmp_path / "nowhere")]) == 1
