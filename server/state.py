"""The state folder of one server: locked, complete, and never silently empty.

STATE_DIR/lock               held as long as the server runs; the system gives it back whatever happens to us
STATE_DIR/catalogue.sqlite   see `server.catalogue`
STATE_DIR/blobs/             see `server.blobs`
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import StorageUnavailableError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, private to its owner, and hold its lock.

    Raises StorageUnavailableError if it cannot be written or another server holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageUnavailableError(
            f"the state folder {folder} cannot be used: {error.strerror}", hint="give ADAKRON_STATE_DIR another folder"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageUnavailableError(
                f"another server is using the state folder {folder}",
                hint="stop it, or give this one another ADAKRON_STATE_DIR",
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def opened(catalogue_path: Path, blobs_dir: Path) -> Iterator[tuple[Catalogue, BlobStore]]:
    """Catalogue and blobs for writing, checked and tidied; only under the lock and while nobody else writes.

    Raises StorageUnavailableError if they are damaged, or if there are blobs and no catalogue that knows them.
    """
    is_lost = not catalogue_path.exists() and any(blobs_dir.glob("??/*"))
    if is_lost:
        raise StorageUnavailableError(
            f"{blobs_dir} holds adapters and {catalogue_path} is missing",
            hint="restore the catalogue from a backup, or move the blobs away to begin anew",
        )
    blobs = BlobStore(blobs_dir)
    blobs.clear_temporary()
    catalogue = Catalogue(catalogue_path, is_writer=True)
    try:
        yield catalogue, blobs
    finally:
        catalogue.close()
