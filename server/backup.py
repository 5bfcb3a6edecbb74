"""A backup: everything that a server would need to go on from here, in one folder, whatever it was kept in.

    DIR/manifest.json     what is in it, with the sha256 of catalogue.jsonl
    DIR/catalogue.jsonl   every row of the catalogue as of one moment: see `server.dump`
    DIR/blobs/ab/ab12...  the bytes of every version in it, as `server.blobs` keeps them

It is taken beside a server that runs or of one that does not, and holds no more than the rows and bytes: API keys are
there as the digests that the catalogue has. The folder appears under its name when it is whole; until then it is
DIR.partial, and taking the backup again goes on from there. Knows nothing of HTTP.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import adakron
from server import dump
from server.blobs import BlobStore, sync_folder
from server.errors import ConflictError, StorageUnavailableError
from server.state import make_folder
from server.tables import FORMAT_VERSION

BACKUP_FORMAT = 1
MANIFEST, ROWS, BLOBS = "manifest.json", "catalogue.jsonl", "blobs"
# What is deleted while it is copied makes a backup begin with newer rows: bytes that are there already stay.
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """rows_sha256: of catalogue.jsonl; generation: of the catalogue; blobs, bytes: of the kept versions' contents."""

    backup_format: int
    catalogue_format: int
    adakron_version: str
    taken_at: str
    rows_sha256: str
    generation: int
    names: int
    versions: int
    keys: int
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What one reading of the rows found. sizes: sha256 of a kept version -> bytes."""

    rows_sha256: str
    generation: int
    names: int
    versions: int
    keys: int
    sizes: dict[str, int]


def back_up(
    catalogue_url: str, blobs: BlobStore, target: Path, *, begin: Callable[[int], None], advance: Callable[[], None]
) -> Manifest:
    """Write all of it to `target`, which must not exist yet. Every byte is verified on its way.

    begin    is told how many files there are, and again if that changes; advance, of each that is done
    Raises ConflictError, StorageUnavailableError (a damaged file is named), StorageFullError, OSError.
    """
    if target.exists():
        raise ConflictError(f"{target} is there already", hint="name another folder, or remove it")
    partial = target.with_name(f"{target.name}.partial")
    make_folder(partial)
    with _alone(partial):
        return _back_up(catalogue_url, blobs, partial, target, begin, advance)


def read_manifest(source: Path) -> Manifest:
    """What a backup holds. Raises StorageUnavailableError for a folder that is none, or none that is read here."""
    try:
        raw = json.loads((source / MANIFEST).read_bytes())
        for name, ours in (("backup_format", BACKUP_FORMAT), ("catalogue_format", FORMAT_VERSION)):
            if raw[name] != ours:
                raise StorageUnavailableError(
                    f"the backup has {name} {raw[name]}; this release reads {ours}",
                    hint=f"restore it with adakron {raw['adakron_version']}, which took it",
                )
        return Manifest(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageUnavailableError(
            f"{source} holds no whole backup", hint="a whole one has manifest.json"
        ) from error


def rows_of(source: Path, manifest: Manifest) -> Iterator[dump.Line]:
    """The rows of a backup. Raises StorageUnavailableError, even after the last, if they are damaged."""
    digest = hashlib.sha256()
    try:
        with (source / ROWS).open("rb") as file:
            for text in file:
                digest.update(text)
                yield dump.from_json(text.decode())
    except (OSError, ValueError) as error:
        raise StorageUnavailableError(f"{ROWS} of the backup cannot be read: {error}") from error
    if digest.hexdigest() != manifest.rows_sha256:
        raise StorageUnavailableError(f"{ROWS} of the backup is damaged")


def contents_of(lines: Iterator[dump.Line]) -> dict[str, int]:
    """sha256 -> bytes of every kept version among the rows."""
    return {
        line.row["sha256"]: line.row["size_bytes"]
        for line in lines
        if line.table == "versions" and line.row["state"] == "kept"
    }


def _back_up(
    catalogue_url: str,
    blobs: BlobStore,
    partial: Path,
    target: Path,
    begin: Callable[[int], None],
    advance: Callable[[], None],
) -> Manifest:
    copies = BlobStore(partial / BLOBS)
    copies.clear_temporary()
    done = _verified(copies)
    held = _write_rows(catalogue_url, partial / ROWS)
    begin(len(held.sizes))
    for last in reversed(range(ROUNDS)):
        gone = _copy_blobs(held, done, blobs, copies, advance)
        if gone is None:
            break
        former, held = held, _write_rows(catalogue_url, partial / ROWS)
        if gone[0] in held.sizes or last == 0:
            raise StorageUnavailableError(
                f"version {gone[0][:12]} cannot be backed up: {gone[1]}",
                hint="upload it again or delete it, then take the backup again: it goes on from here",
            ) from gone[1]
        begin(len(held.sizes | former.sizes))
    for sha256 in done - held.sizes.keys():  # of an earlier round or attempt
        copies.delete(sha256)
    manifest = Manifest(
        backup_format=BACKUP_FORMAT,
        catalogue_format=FORMAT_VERSION,
        adakron_version=adakron.__version__,
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        rows_sha256=held.rows_sha256,
        generation=held.generation,
        names=held.names,
        versions=held.versions,
        keys=held.keys,
        blobs=len(held.sizes),
        bytes=sum(held.sizes.values()),
    )
    _write_durably(partial / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
    sync_folder(partial)
    partial.rename(target)
    sync_folder(target.absolute().parent)
    return manifest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConflictError(f"another backup to {folder} is under way") from error
    finally:
        os.close(descriptor)


def _write_rows(catalogue_url: str, path: Path) -> Held:
    digest = hashlib.sha256()
    generation = names = versions = keys = 0
    sizes: dict[str, int] = {}
    with dump.held_still(catalogue_url) as lines, path.open("wb") as file:
        for line in lines:
            text = dump.to_json(line).encode() + b"\n"
            digest.update(text)
            file.write(text)
            row = line.row
            generation = row["generation"] if line.table == "meta" else generation
            names += line.table == "adapters" and not row["deleted"]
            keys += line.table == "keys"
            if line.table == "versions" and row["state"] == "kept":
                versions += 1
                sizes[row["sha256"]] = row["size_bytes"]
        file.flush()
        os.fsync(file.fileno())
    return Held(digest.hexdigest(), generation, names, versions, keys, sizes)


def _copy_blobs(
    held: Held, done: set[str], blobs: BlobStore, copies: BlobStore, advance: Callable[[], None]
) -> tuple[str, StorageUnavailableError] | None:
    """Copy what is not done yet; the first that cannot be read, and why."""
    for sha256 in sorted(held.sizes):
        if sha256 not in done:
            try:
                data = blobs.read(sha256)
            except StorageUnavailableError as error:
                return sha256, error
            with copies.stage() as staged:
                staged.write(data)
                staged.keep()
            done.add(sha256)
        advance()
    return None


def _verified(copies: BlobStore) -> set[str]:
    """What an interrupted backup left whole."""
    whole = set()
    for sha256, _ in list(copies.stored()):
        try:
            copies.read(sha256)
        except StorageUnavailableError:
            copies.delete(sha256)
        else:
            whole.add(sha256)
    return whole


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
