"""The state folder: one server at a time, tidied, and never taken for new when its catalogue is lost."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server import state
from server.blobs import BlobStore
from server.database import sqlite_url
from server.errors import StorageUnavailableError
from tests.server.postgres import new_database


def test_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with state.locked(tmp_path / "a" / "b"):
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    with state.locked(tmp_path), pytest.raises(StorageUnavailableError, match="another server"), state.locked(tmp_path):
        pass


def test_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    with state.locked(tmp_path):
        pass
    with state.locked(tmp_path):
        pass


def test_lock_of_a_killed_server_is_free(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from server import state\n"
        "with state.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(StorageUnavailableError), state.locked(tmp_path):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with state.locked(tmp_path):
        pass


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailableError, match="cannot be used"), state.locked(tmp_path / "file" / "below"):
        pass


def test_opened_makes_an_empty_catalogue_once(tmp_path: Path) -> None:
    for _ in range(2):
        with state.opened(sqlite_url(tmp_path / "c.sqlite"), BlobStore(tmp_path / "blobs")) as catalogue:
            assert catalogue.generation() == 0


def test_opened_clears_interrupted_uploads(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "tmp").mkdir(parents=True)
    (tmp_path / "blobs" / "tmp" / "half").write_bytes(b"")
    with state.opened(sqlite_url(tmp_path / "c.sqlite"), BlobStore(tmp_path / "blobs")):
        assert os.listdir(tmp_path / "blobs" / "tmp") == []  # noqa: PTH208 (a list to compare)


def write_blob(folder: Path) -> Path:
    blob = folder / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"precious")
    return blob


def test_blobs_without_a_catalogue_are_refused_and_kept(tmp_path: Path) -> None:
    blob = write_blob(tmp_path / "blobs")
    url, blobs = sqlite_url(tmp_path / "c"), BlobStore(tmp_path / "blobs")
    with pytest.raises(StorageUnavailableError, match="is missing"), state.opened(url, blobs):
        pass
    assert blob.exists()
    assert not (tmp_path / "c").exists()


def test_blobs_beside_an_empty_database_are_refused_and_kept(tmp_path: Path, postgres: str) -> None:
    blob = write_blob(tmp_path / "blobs")
    url, blobs = new_database(postgres), BlobStore(tmp_path / "blobs")
    with pytest.raises(StorageUnavailableError, match="is missing"), state.opened(url, blobs):
        pass
    assert blob.exists()


def test_bytes_of_an_upload_that_never_committed_are_removed(tmp_path: Path) -> None:
    url, blobs = sqlite_url(tmp_path / "c"), BlobStore(tmp_path / "blobs")
    with state.opened(url, blobs):
        pass
    blob = write_blob(tmp_path / "blobs")
    with state.opened(url, blobs):
        assert not blob.exists()


def test_bytes_in_a_shared_store_may_be_an_upload_of_another_server(tmp_path: Path, postgres: str) -> None:
    url, blobs = new_database(postgres), BlobStore(tmp_path / "blobs")
    with state.opened(url, blobs):
        pass
    blob = write_blob(tmp_path / "blobs")
    with state.opened(url, blobs):
        assert blob.exists()
    os.utime(blob, (0, 0))
    with state.opened(url, blobs):
        assert not blob.exists()
