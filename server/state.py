"""The state folder of one server: locked, complete, and never silently empty.

STATE_DIR/lock               held as long as the server runs; the system gives it back whatever happens to us
STATE_DIR/catalogue.sqlite   see `server.catalogue`, unless it lies in PostgreSQL
STATE_DIR/blobs/             see `server.blobs`, unless they lie in a remote store
STATE_DIR/cache/             see `server.remote_blobs`, if they do
STATE_DIR/restoring          while `server.restore` fills them: what is here then is not whole
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import holds_catalogue
from server.errors import StorageUnavailableError
from server.tidying import UPLOADS_LAST_S, collect_orphans

RESTORING = "restoring"


def make_folder(folder: Path) -> None:
    """Make the folder, private to its owner. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def check_complete(catalogue_url: str, blobs: BlobStore) -> None:
    """Raises StorageUnavailableError if there are blobs and no catalogue that knows them."""
    if not holds_catalogue(catalogue_url) and any(True for _ in blobs.stored()):
        raise StorageUnavailableError(
            "there are stored adapters, and the catalogue that knows them is missing",
            hint="restore the catalogue from a backup, or move the blobs away to begin anew",
        )


def check_not_restoring(folder: Path) -> None:
    """Raises StorageUnavailableError if a restore was begun here and has not ended."""
    if (folder / RESTORING).exists():
        raise StorageUnavailableError(
            f"a restore into {folder} did not come to its end", hint="run `adakron restore` with the same backup again"
        )


@contextmanager
def locked(folder: Path, *, restoring: bool = False) -> Iterator[None]:
    """Make the folder, private to its owner, and hold its lock.

    restoring  whoever calls is the restore that may have been interrupted here
    Raises StorageUnavailableError if it cannot be written, another server holds it, or it is not whole.
    """
    try:
        make_folder(folder)
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
        if not restoring:
            check_not_restoring(folder)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def opened(catalogue_url: str, blobs: BlobStore) -> Iterator[Catalogue]:
    """The catalogue for writing, checked and migrated, and the blobs tidied; only under the lock.

    Raises StorageUnavailableError if they are damaged, or if there are blobs and no catalogue that knows them.
    """
    check_complete(catalogue_url, blobs)
    blobs.clear_temporary()
    catalogue = Catalogue(catalogue_url, is_writer=True)
    try:
        # Where nobody shares the catalogue, nobody uploads before the service runs.
        collect_orphans(catalogue, blobs, older_than_s=UPLOADS_LAST_S if catalogue.is_shared else 0.0)
        yield catalogue
    finally:
        catalogue.close()
