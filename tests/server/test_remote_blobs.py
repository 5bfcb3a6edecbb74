"""Remote blobs, on a store that speaks S3 over HTTP: durable there, copied here within a budget, always verified."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from server.errors import StorageUnavailableError
from server.remote_blobs import RemoteBlobStore, open_blobs

DATA = b"an artefact, as far as this store knows"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(s3: str, request: pytest.FixtureRequest) -> str:
    """A prefix of its own in the bucket of the running S3 server."""
    return f"{s3}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> RemoteBlobStore:
    return open_store(url, tmp_path / "cache")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.remote_blobs.FIRST_PAUSE_S", 0.0)


def open_store(url: str, cache: Path, budget_bytes: int = 10_000) -> RemoteBlobStore:
    opened = open_blobs(url, cache.with_name("blobs"), cache_budget_bytes=budget_bytes)
    assert isinstance(opened, RemoteBlobStore)
    return opened


def put(store: RemoteBlobStore, data: bytes = DATA) -> str:
    with store.stage() as staged:
        staged.write(data)
        return staged.keep()


def copies(store: RemoteBlobStore) -> list[str]:
    return sorted(path.name for path in store._root.rglob("*") if path.is_file())


def drop_copies(store: RemoteBlobStore) -> None:
    for path in store._root.glob("??/*"):
        path.unlink()


def test_kept_bytes_are_in_the_store_and_copied_here(store: RemoteBlobStore) -> None:
    assert put(store) == SHA256
    assert SHA256 in store
    assert copies(store) == [SHA256]
    assert store.read(SHA256) == DATA


def test_another_server_reads_them_and_keeps_a_copy(store: RemoteBlobStore, url: str, tmp_path: Path) -> None:
    put(store)
    other = open_store(url, tmp_path / "elsewhere" / "cache")
    assert other.read(SHA256) == DATA
    assert copies(other) == [SHA256]


def test_copy_spares_the_way_to_the_store(store: RemoteBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    monkeypatch.setattr(store, "_fetch", lambda sha256: pytest.fail("asked the store"))
    assert store.read(SHA256) == DATA


def test_damaged_copy_is_replaced_from_the_store(store: RemoteBlobStore) -> None:
    put(store)
    store._path(SHA256).write_bytes(b"rotten")
    assert store.read(SHA256) == DATA
    assert store._path(SHA256).read_bytes() == DATA


@pytest.mark.parametrize("data", [b"b" + DATA[1:], DATA[:-1], DATA + b"x"])
def test_other_bytes_in_the_store_are_refused_and_not_copied(store: RemoteBlobStore, data: bytes) -> None:
    put(store)
    drop_copies(store)
    store._remote.pipe_file(store._remote_path(SHA256), data)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        store.read(SHA256)
    assert copies(store) == []


def test_blob_larger_than_any_may_be_is_not_read_whole(url: str, tmp_path: Path) -> None:
    store = RemoteBlobStore(url, tmp_path / "cache", cache_budget_bytes=10_000, max_bytes=10)
    store._remote.pipe_file(store._remote_path(SHA256), DATA)
    asked: list[int] = []
    real = store._remote.cat_file

    def cat_file(path: str, start: int, end: int) -> Any:
        asked.append(end - start)
        return real(path, start=start, end=end)

    store._remote.cat_file = cat_file
    with pytest.raises(StorageUnavailableError, match="its 11 bytes"):
        store.read(SHA256)
    assert asked == [11]


def test_missing_blob_raises_at_once(store: RemoteBlobStore) -> None:
    with pytest.raises(StorageUnavailableError, match="not in the store"):
        store.read(SHA256)
    assert SHA256 not in store


def test_delete_frees_store_and_copy_and_is_idempotent(store: RemoteBlobStore) -> None:
    put(store)
    assert store.delete(SHA256) == (len(DATA), len(DATA))
    assert store.delete(SHA256) == (0, 0)
    assert SHA256 not in store
    assert copies(store) == []


def test_stored_lists_the_store_and_ages(store: RemoteBlobStore) -> None:
    assert list(store.stored()) == []
    put(store)
    drop_copies(store)
    ((sha256, age_s),) = store.stored()
    assert sha256 == SHA256
    assert age_s < 3600


def test_copies_stay_within_the_budget_and_the_least_used_go_first(url: str, tmp_path: Path) -> None:
    store = open_store(url, tmp_path / "cache", budget_bytes=2 * len(DATA))
    names = []
    for step in range(3):
        names.append(put(store, DATA[:-1] + bytes([step])))
        os.utime(store._path(names[-1]), (time.time() - 100 + step,) * 2)
        if step == 1:
            store.read(names[0])  # used again, so that the other one goes
    assert copies(store) == sorted([names[0], names[2]])
    assert [store.read(name)[-1] for name in names] == [0, 1, 2]


def test_upload_not_kept_leaves_nothing_anywhere(store: RemoteBlobStore) -> None:
    with store.stage() as staged:
        staged.write(DATA)
    assert (copies(store), list(store.stored())) == ([], [])


class Failing:
    """Stands before a file system's method: raises some times, then lets calls through."""

    def __init__(self, real: Any, error: Exception, times: int) -> None:
        self.real, self.error, self.times, self.calls = real, error, times, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.real(*arguments, **options)


@pytest.mark.parametrize("method", ["put_file", "cat_file", "info"])
def test_store_that_fails_twice_is_asked_a_third_time(
    store: RemoteBlobStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    failing = Failing(getattr(store._remote, method), TimeoutError("slow"), 2)
    monkeypatch.setattr(store._remote, method, failing)
    put(store)
    drop_copies(store)
    assert store.read(SHA256) == DATA


def test_store_that_stays_away_is_unavailable_and_leaves_nothing_here(
    store: RemoteBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(None, RuntimeError("at internal.example.org with key"), 10**9)
    monkeypatch.setattr(store._remote, "put_file", failing)
    with pytest.raises(StorageUnavailableError, match="does not answer") as caught:
        put(store)
    assert failing.calls == 3
    assert "example" not in str(caught.value)
    assert copies(store) == []


def test_store_that_refuses_is_not_asked_again(store: RemoteBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(None, PermissionError("403"), 10**9)
    monkeypatch.setattr(store._remote, "put_file", failing)
    with pytest.raises(StorageUnavailableError, match="refuses"):
        put(store)
    assert failing.calls == 1


def test_upload_that_arrives_short_is_noticed(store: RemoteBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store._remote, "put_file", lambda local, path: store._remote.pipe_file(path, DATA[:5]))
    with pytest.raises(StorageUnavailableError):
        put(store)


def test_kind_of_store_without_a_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="carrier-pigeon") as caught:
        open_blobs("carrier-pigeon://loft", tmp_path / "blobs", cache_budget_bytes=1)
    assert "fsspec" in str(caught.value.hint)


def test_store_with_folders_gets_those_it_needs(tmp_path: Path) -> None:
    store = open_store(f"local://{tmp_path}/there", tmp_path / "cache")
    put(store)
    drop_copies(store)
    assert store.read(SHA256) == DATA
