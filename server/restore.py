"""A server's state from a backup: the bytes first, then all rows in one transaction.

    mark STATE_DIR/restoring -> bytes, each verified -> rows, all at once -> bytes looked for again -> mark removed

While the mark is there no server starts on the folder, so that an interrupted restore is never served; it is taken up
again by asking for the same restore. Until the rows are committed what was there before stays as it was. Knows nothing
of HTTP.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from server import dump, state
from server.backup import BLOBS, Manifest, contents_of, read_manifest, rows_of
from server.blobs import BlobStore, sync_folder
from server.errors import ConflictError, StorageUnavailableError


@dataclass(frozen=True, slots=True)
class Restored:
    """generation: of the catalogue now, past that of the backup."""

    manifest: Manifest
    generation: int


def check(source: Path, *, begin: Callable[[int], None], advance: Callable[[], None]) -> Manifest:
    """Read a whole backup and change nothing. Raises StorageUnavailableError for the first damage."""
    manifest = read_manifest(source)
    contents = contents_of(rows_of(source, manifest))
    begin(len(contents))
    blobs = BlobStore(source / BLOBS)
    for sha256 in contents:
        blobs.read(sha256)
        advance()
    return manifest


def restore(
    source: Path,
    state_dir: Path,
    catalogue_url: str,
    blobs: BlobStore,
    *,
    force: bool,
    begin: Callable[[int], None],
    advance: Callable[[], None],
) -> Restored:
    """Let the state be what the backup holds. The folder must not be in use; servers elsewhere follow by themselves.

    force           over a catalogue that holds something, which is lost
    begin, advance  are told how many files there are, and of each that is done
    Raises ConflictError, StorageUnavailableError, StorageFullError.
    """
    manifest = read_manifest(source)
    contents = contents_of(rows_of(source, manifest))
    mark = state_dir / state.RESTORING
    with state.locked(state_dir, restoring=True):
        _check_may_replace(catalogue_url, mark, manifest, force=force)
        is_first = not mark.exists()
        _write_mark(mark, manifest)
        begin(len(contents))
        copies = BlobStore(source / BLOBS)
        blobs.clear_temporary()
        try:
            _put(contents, copies, blobs, advance)
            counters = dump.replace(catalogue_url, rows_of(source, manifest))
        except BaseException:
            if is_first:  # nothing that was served has changed
                mark.unlink()
            raise
        # Another server's tidying may have taken what no row needed yet; from here on rows need it.
        _put([sha256 for sha256 in contents if sha256 not in blobs], copies, blobs, lambda: None)
        mark.unlink()
        sync_folder(state_dir)
    return Restored(manifest, counters.generation)


def _check_may_replace(catalogue_url: str, mark: Path, manifest: Manifest, *, force: bool) -> None:
    if mark.exists() and mark.read_text() == manifest.rows_sha256:
        return  # this very restore was begun before, with whatever leave it needed
    try:
        found = dump.counters(catalogue_url)
    except StorageUnavailableError as error:  # its own hint may be to restore it
        raise StorageUnavailableError(error.message, hint="move it away, and restore again") from error
    if not force and found is not None and found != dump.Counters(0, 0):
        raise ConflictError(
            f"there is a catalogue already, at generation {found.generation}",
            hint="name an empty state, or replace all that is there with --force",
        )


def _write_mark(mark: Path, manifest: Manifest) -> None:
    with mark.open("w") as file:
        file.write(manifest.rows_sha256)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(mark.parent)


def _put(contents: Collection[str], copies: BlobStore, blobs: BlobStore, advance: Callable[[], None]) -> None:
    for sha256 in contents:
        if not _is_whole(sha256, blobs):
            with blobs.stage() as staged:
                staged.write(copies.read(sha256))
                staged.keep()
        advance()


def _is_whole(sha256: str, blobs: BlobStore) -> bool:
    if sha256 not in blobs:
        return False
    try:
        blobs.read(sha256)
    except StorageUnavailableError:
        return False
    return True
