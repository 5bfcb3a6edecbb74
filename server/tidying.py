"""Removing what nothing needs: bytes that no version has, and keys of requests that nobody will repeat.

An upload puts its bytes into the store before it commits, so bytes without a version may be an upload under way: they
are left alone for an hour, unless it is certain that there is none. Knows nothing of HTTP or the replicas.
"""

import logging
from collections.abc import Container

from server.blobs import BlobStore, Freed
from server.catalogue import Catalogue

UPLOADS_LAST_S = 3600.0

log = logging.getLogger(__name__)


def collect_orphans(
    catalogue: Catalogue, blobs: BlobStore, *, older_than_s: float = UPLOADS_LAST_S, spared: Container[str] = ()
) -> int:
    """Delete the blobs that no kept version needs, nor anything in `spared`. Returns how many that were.

    Raises StorageUnavailableError.
    """
    referenced = catalogue.referenced()
    orphans = 0
    for sha256, age_s in list(blobs.stored()):
        if sha256 not in referenced and sha256 not in spared and age_s >= older_than_s:
            orphans += collect(catalogue, blobs, sha256) != Freed(0)
    if orphans:
        log.info("removed %d stored files that no version needs", orphans)
    return orphans


def collect(catalogue: Catalogue, blobs: BlobStore, sha256: str) -> Freed:
    """Delete one blob unless a kept version needs it."""
    freed = Freed(0)

    def delete(sha256: str) -> None:
        nonlocal freed
        freed = blobs.delete(sha256)

    catalogue.collect(sha256, delete)
    return freed
