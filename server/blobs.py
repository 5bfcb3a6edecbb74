"""Artefact files by content: BLOBS/ab/ab12...: the name is the sha256 of the bytes.

An upload is written to BLOBS/tmp while it is hashed, read back, and appears under its name by one rename: a blob is
there whole or not at all. What is read is verified against its name, every time. Knows nothing of names, versions,
HTTP or what the bytes mean.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from server.errors import BodyTooLargeError, StorageFullError, StorageUnavailableError

MAX_BLOB_BYTES = 64 * 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")


class Freed(NamedTuple):
    """Bytes that a delete freed: on this disk, and in a remote store."""

    disk_bytes: int
    remote_bytes: int = 0


class BlobStore:
    """A folder of blobs. Methods block on the disk: call them off the event loop. Any thread, any process.

    Raises StorageFullError (disk or quota), StorageUnavailableError (anything else the file system refuses; and,
    once a sync to disk has failed, every write until restart, because the kernel may have dropped the data).
    """

    def __init__(self, root: Path, *, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self._root = root
        self._temp = root / "tmp"
        self._max_bytes = max_bytes
        self._is_healthy = True
        with _storage_errors("create"):
            self._temp.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __contains__(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def clear_temporary(self) -> int:
        """Remove what interrupted uploads left; only while nobody writes. Returns how many files that were."""
        with _storage_errors("tidy"):
            stale = list(self._temp.iterdir())
            for path in stale:
                path.unlink()
            return len(stale)

    def stored(self) -> Iterator[tuple[str, float]]:
        """The sha256 of every blob there is, in no order, and how many seconds ago it was put there."""
        now_s = time.time()
        with _storage_errors("list"):
            for path in self._root.glob("??/*"):
                if SHA256.fullmatch(path.name):
                    yield path.name, now_s - path.stat().st_mtime

    def stage(self) -> "StagedBlob":
        """Begin an upload. Use as a context manager: what is not kept is removed."""
        if not self._is_healthy:
            raise StorageUnavailableError(
                "a write to disk failed earlier; restart the server after looking at the disk"
            )
        return StagedBlob(self._temp / secrets.token_hex(16), self, self._max_bytes)

    def read(self, sha256: str) -> bytes:
        """The bytes of a blob, verified. Raises StorageUnavailableError if it is missing, odd, or has other bytes."""
        with _storage_errors("read"):
            # O_NOFOLLOW and the check of the type: a link or a FIFO put here must neither be followed nor block us.
            descriptor = os.open(self._path(sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > self._max_bytes:
                    raise StorageUnavailableError(
                        f"blob {sha256[:12]} is not a file of at most {self._max_bytes} bytes"
                    )
                data = file.read(self._max_bytes + 1)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(sha256, data)
        return data

    def delete(self, sha256: str) -> Freed:
        """Remove a blob; no error if it is gone already."""
        path = self._path(sha256)
        with _storage_errors("delete"):
            try:
                size_bytes = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return Freed(0)
            return Freed(size_bytes)

    def _path(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise ValueError("a blob is named by 64 lower-case hex digits")
        return self._root / sha256[:2] / sha256

    def _publish(self, temporary: Path, descriptor: int, sha256: str) -> None:
        path = self._path(sha256)
        try:
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._root)
            temporary.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            # After a failed fsync a second one may report success for data that never reached the disk.
            self._is_healthy = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise


class StagedBlob:
    """One upload on its way to the store. Not for concurrent use."""

    def __init__(self, path: Path, store: BlobStore, max_bytes: int) -> None:
        self.path = path
        self._store = store
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        with _storage_errors("create"):
            self._file = open(path, "xb+", buffering=0, opener=_open_private)  # noqa: SIM115 (lives as long as self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the upload; the file goes unless `keep` gave it its name."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append. Raises BodyTooLargeError as soon as the cap is passed, before the excess touches the disk."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise BodyTooLargeError(f"an adapter file has at most {self._max_bytes} bytes")
        self._digest.update(data)
        with _storage_errors("write"):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def read_back(self) -> bytes:
        """The bytes as the file holds them: the ones to validate. Raises StorageUnavailableError if they differ."""
        with _storage_errors("read"):
            self._file.seek(0)
            data = self._file.read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise StorageUnavailableError("the upload reads back from disk with other bytes than were written")
        return data

    def keep(self) -> str:
        """Make it durable under its content's name, over a damaged file of that name too. Returns the sha256."""
        with _storage_errors("write"):
            self._store._publish(self.path, self._file.fileno(), self.sha256)
        return self.sha256


def damaged(sha256: str, data: bytes) -> StorageUnavailableError:
    """For `data` that was found where the blob should be."""
    return StorageUnavailableError(
        f"blob {sha256[:12]} is damaged: its {len(data)} bytes hash to {hashlib.sha256(data).hexdigest()[:12]}",
        hint="upload the adapter again; that replaces the damaged file",
    )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def sync_folder(folder: Path) -> None:
    """Make durable which names are in a folder. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(
                "the disk of the adapter store is full", hint="delete versions or free space"
            ) from error
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StorageUnavailableError(f"cannot {doing} a stored adapter: {reason}") from error
