"""Artefact files by content in a remote store: s3:// and whatever else fsspec knows, with copies on the local disk.

    REMOTE/ab/ab12...    the blob, put there whole by one write of the store
    CACHE/ab/ab12...     a copy, verified when it is read, dropped when others were used later and space is short

An upload is staged on the local disk, as it is for a local folder, and becomes the first copy. A store that fails is
asked again a few times, a little later each time. Knows nothing of names, versions, or what the bytes mean.
"""

import contextlib
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec

from server.blobs import MAX_BLOB_BYTES, SHA256, BlobStore, Freed, damaged
from server.errors import ServerError, StorageUnavailableError

ATTEMPTS = 3
FIRST_PAUSE_S = 0.2

T = TypeVar("T")
log = logging.getLogger(__name__)


class RemoteBlobStore(BlobStore):
    """Blobs at `url`. `folder` is local and this server's own: uploads under way, and copies of at most
    `cache_budget_bytes`.

    Raises StorageUnavailableError where the store cannot be reached, has other bytes, or is of a kind that nothing
    here can speak to; StorageFullError where the local disk is full.
    """

    def __init__(self, url: str, folder: Path, *, cache_budget_bytes: int, max_bytes: int = MAX_BLOB_BYTES) -> None:
        super().__init__(folder, max_bytes=max_bytes)
        self._budget_bytes = cache_budget_bytes
        try:
            # Other servers write there too: what this one listed a while ago is not what is there now.
            self._remote, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageUnavailableError(
                f"ADAKRON_BLOB_URL: nothing here can speak to {url.partition(':')[0][:16]}://",
                hint="install the fsspec driver for it, such as gcsfs for gs://",
            ) from error
        self._remote_root = root.rstrip("/")

    def __contains__(self, sha256: str) -> bool:
        path = self._remote_path(sha256)
        return self._ask("look up", lambda: bool(self._remote.exists(path)))

    def stored(self) -> Iterator[tuple[str, float]]:
        """The sha256 of every blob there is, and how many seconds ago it was put there."""
        found = self._ask("list", self._list)
        now_s = time.time()
        for path, details in found.items():
            name = path.rpartition("/")[2]
            modified = details.get("LastModified") or details.get("mtime") or details.get("created")
            if SHA256.fullmatch(name):
                yield name, now_s - modified.timestamp() if hasattr(modified, "timestamp") else 0.0

    def read(self, sha256: str) -> bytes:
        """The bytes of a blob, verified: those of the copy, or else of the store."""
        copy = self._path(sha256)
        with contextlib.suppress(StorageUnavailableError):  # no copy, or a damaged one, which is replaced
            data = super().read(sha256)
            with contextlib.suppress(OSError):
                os.utime(copy)  # used now: among the last to go
            return data
        data = self._fetch(sha256)
        self._keep_copy(sha256, data)
        return data

    def delete(self, sha256: str) -> Freed:
        """Remove a blob and the copy of it here; no error if it is gone already."""
        path = self._remote_path(sha256)

        def remove() -> int:
            try:
                size_bytes = int(self._remote.info(path)["size"])
                self._remote.rm_file(path)
            except FileNotFoundError:
                return 0
            return size_bytes

        remote_bytes = self._ask("delete", remove)
        return Freed(disk_bytes=super().delete(sha256).disk_bytes, remote_bytes=remote_bytes)

    def _publish(self, temporary: Path, descriptor: int, sha256: str) -> None:
        path = self._remote_path(sha256)
        size_bytes = os.fstat(descriptor).st_size

        def put() -> None:
            try:
                self._remote.put_file(str(temporary), path)
            except FileNotFoundError:  # a store that has folders, and not yet this one
                self._remote.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._remote.put_file(str(temporary), path)
            found_bytes = int(self._remote.info(path)["size"])
            if found_bytes != size_bytes:
                raise OSError(f"{found_bytes} of {size_bytes} bytes arrived")

        self._ask("write", put)
        copy = self._path(sha256)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.rename(copy)
        self._make_room()

    def _fetch(self, sha256: str) -> bytes:
        path = self._remote_path(sha256)
        # One byte more than may be there shows that there is more, without reading all of it.
        data: bytes = self._ask("read", lambda: self._remote.cat_file(path, start=0, end=self._max_bytes + 1))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(sha256, data)
        return data

    def _keep_copy(self, sha256: str, data: bytes) -> None:
        try:
            with self.stage() as staged:
                staged.write(data)
                copy = self._path(sha256)
                copy.parent.mkdir(mode=0o700, exist_ok=True)
                staged.path.rename(copy)
            self._make_room()
        except (OSError, ServerError) as error:
            log.warning("blob %s is used without a copy on this disk: %s", sha256[:12], type(error).__name__)

    def _make_room(self) -> None:
        copies = []
        for path in self._root.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process made room too
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        excess_bytes = sum(size for _, size, _ in copies) - self._budget_bytes
        for _, size_bytes, path in sorted(copies):
            if excess_bytes <= 0:
                return
            path.unlink(missing_ok=True)
            excess_bytes -= size_bytes

    def _list(self) -> dict[str, dict[str, object]]:
        try:
            return dict(self._remote.find(self._remote_root, detail=True))
        except FileNotFoundError:
            return {}

    def _remote_path(self, sha256: str) -> str:
        local = self._path(sha256)
        return f"{self._remote_root}/{local.parent.name}/{local.name}"

    def _ask(self, doing: str, work: Callable[[], T]) -> T:
        """Raises StorageUnavailableError, at once where waiting cannot help, and after some attempts otherwise."""
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except FileNotFoundError as error:
                raise StorageUnavailableError(f"cannot {doing} a stored adapter: it is not in the store") from error
            except PermissionError as error:
                raise StorageUnavailableError(f"cannot {doing} a stored adapter: the store refuses") from error
            except Exception as error:  # each driver raises errors of its own
                # Their text may hold addresses and keys, which belong neither into a reply nor into a log.
                log.warning("the blob store failed to %s: %s", doing, type(error).__name__)
                if attempt == ATTEMPTS - 1:
                    raise StorageUnavailableError(
                        f"cannot {doing} a stored adapter: the store does not answer", retry_after_s=5
                    ) from error
            time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("the last attempt returns or raises")


def open_blobs(url: str | None, folder: Path, *, cache_budget_bytes: int) -> BlobStore:
    """The blobs at `url`, or in `folder` where there is none. Raises StorageUnavailableError."""
    if url is None:
        return BlobStore(folder)
    return RemoteBlobStore(url, folder.with_name("cache"), cache_budget_bytes=cache_budget_bytes)
