"""The blob store: whole or absent, verified on reading, private, and honest about a failing disk."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from server.blobs import BlobStore
from server.errors import BodyTooLargeError, StorageFullError, StorageUnavailableError

DATA = b"an artefact, as far as this store knows"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def put(store: BlobStore, data: bytes = DATA) -> str:
    with store.stage() as staged:
        staged.write(data)
        return staged.keep()


def files(store: BlobStore) -> list[str]:
    return sorted(path.name for path in store._root.rglob("*") if not path.is_dir())


def test_kept_bytes_are_read_under_their_hash(store: BlobStore) -> None:
    assert put(store) == SHA256
    assert store.read(SHA256) == DATA
    assert SHA256 in store


def test_blob_lies_in_a_folder_of_its_first_two_digits_read_only(store: BlobStore, tmp_path: Path) -> None:
    put(store)
    path = tmp_path / "blobs" / SHA256[:2] / SHA256
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_upload_in_pieces_hashes_as_a_whole(store: BlobStore) -> None:
    with store.stage() as staged:
        staged.write(DATA[:5])
        staged.write(DATA[5:])
        assert (staged.sha256, staged.size_bytes, staged.read_back()) == (SHA256, len(DATA), DATA)


def test_upload_not_kept_leaves_nothing(store: BlobStore) -> None:
    with store.stage() as staged:
        staged.write(DATA)
    assert files(store) == []


def test_upload_that_raises_leaves_nothing(store: BlobStore) -> None:
    def break_off() -> None:
        with store.stage() as staged:
            staged.write(DATA)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert files(store) == []


def test_upload_over_the_cap_is_refused_before_the_excess_is_written(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, max_bytes=10)
    with store.stage() as staged:
        staged.write(b"x" * 10)
        with pytest.raises(BodyTooLargeError, match="10 bytes"):
            staged.write(b"x")
        assert staged.path.stat().st_size == 10


def test_same_bytes_twice_are_one_file(store: BlobStore) -> None:
    assert put(store) == put(store)
    assert files(store) == [SHA256]


def test_flipped_byte_is_noticed_on_reading(store: BlobStore) -> None:
    put(store)
    path = store._path(SHA256)
    path.chmod(0o644)
    path.write_bytes(b"b" + DATA[1:])
    with pytest.raises(StorageUnavailableError, match="damaged"):
        store.read(SHA256)


def test_uploading_again_repairs_a_damaged_blob(store: BlobStore) -> None:
    put(store)
    store._path(SHA256).chmod(0o644)
    store._path(SHA256).write_bytes(b"")
    put(store)
    assert store.read(SHA256) == DATA


def test_bytes_changed_on_their_way_to_the_disk_are_noticed(store: BlobStore) -> None:
    with store.stage() as staged:
        staged.write(DATA)
        staged.path.write_bytes(b"b" + DATA[1:])
        with pytest.raises(StorageUnavailableError, match="other bytes"):
            staged.read_back()


def test_missing_blob_raises(store: BlobStore) -> None:
    with pytest.raises(StorageUnavailableError, match="No such file"):
        store.read(SHA256)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(store: BlobStore, tmp_path: Path, kind: str) -> None:
    path = store._path(SHA256)
    path.parent.mkdir()
    if kind == "link":
        (tmp_path / "real").write_bytes(DATA)
        path.symlink_to(tmp_path / "real")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StorageUnavailableError):
        store.read(SHA256)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 62 + "/x"])
def test_name_that_is_no_hash_never_becomes_a_path(store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        store.read(name)


def test_delete_returns_the_bytes_freed_and_is_idempotent(store: BlobStore) -> None:
    put(store)
    assert store.delete(SHA256) == (len(DATA), 0)
    assert store.delete(SHA256) == (0, 0)
    assert SHA256 not in store


def test_interrupted_uploads_are_cleared(store: BlobStore) -> None:
    put(store)
    (store._temp / "left").write_bytes(b"half")
    assert store.clear_temporary() == 1
    assert files(store) == [SHA256]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named_and_uploads_work_once_there_is_space(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError):
            put(store)
    assert files(store) == []
    assert put(store) == SHA256


def test_failed_sync_stops_all_writes_until_restart(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StorageUnavailableError, match="Input/output"):
            put(store)
    with pytest.raises(StorageUnavailableError, match="restart"):
        put(store)


def test_file_and_folders_are_synced_before_the_name_is_announced(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    put(store)
    assert events == ["file", "folder", "rename", "folder"]
