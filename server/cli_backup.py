"""`adakron backup` and `adakron restore`: the whole state of a server to a folder, and back.

They work on the catalogue's database and the stored files themselves, as `serve` finds them by its settings. Knows
arguments and printing; `server.backup` and `server.restore` do the work.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_arguments import Json, print_json
from server.cli_errors import CommandError

if TYPE_CHECKING:
    from server.backup import Manifest
    from server.settings import Settings

# Of files of a remote store that are read once: little, as whatever is kept here is thrown away.
_SCRATCH_BYTES = 256 * 2**20

StateDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="of the server (default: ADAKRON_STATE_DIR, or the server's own)")
]
CatalogueUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="(default: ADAKRON_CATALOGUE_URL, or in the state folder)")
]
BlobUrl = Annotated[str | None, typer.Option(metavar="URL", help="(default: ADAKRON_BLOB_URL, or in the state folder)")]


def add_commands(app: typer.Typer) -> None:
    """Add the verbs to a command line."""
    for verb in (backup, restore):
        app.command()(verb)


def backup(
    folder: Annotated[Path, typer.Argument(help="made; until it is whole it is FOLDER.partial")],
    state_dir: StateDir = None,
    catalogue_url: CatalogueUrl = None,
    blob_url: BlobUrl = None,
    as_json: Json = False,
) -> int:
    """Write catalogue, keys, log and artefacts to a folder, whether the server runs or not.

    An interrupted one goes on from where it was when it is asked for again.
    """
    from server import state
    from server.backup import back_up
    from server.blobs import BlobStore
    from server.cli_progress import counted
    from server.remote_blobs import open_blobs

    settings = _settings(state_dir, catalogue_url, blob_url)
    state.check_not_restoring(settings.state_dir)
    with tempfile.TemporaryDirectory(prefix="adakron-backup-") as scratch, counted("files") as (begin, advance):
        # The copies of a remote store's files here are the running server's: it makes room among them by its own count.
        blobs: BlobStore = (
            settings.open_blobs()
            if settings.blob_url is None
            else open_blobs(settings.blob_url, Path(scratch) / "blobs", cache_budget_bytes=_SCRATCH_BYTES)
        )
        manifest = back_up(settings.catalogue, blobs, folder.absolute(), begin=begin, advance=advance)
    _print(manifest, as_json, {"folder": str(folder)}, f"are in {folder}")
    return 0


def restore(
    folder: Annotated[Path, typer.Argument(help="that `backup` made")],
    state_dir: StateDir = None,
    catalogue_url: CatalogueUrl = None,
    blob_url: BlobUrl = None,
    force: Annotated[bool, typer.Option("--force", help="replace a catalogue that holds something")] = False,
    check: Annotated[bool, typer.Option("--check", help="read all of the backup, and change nothing")] = False,
    as_json: Json = False,
) -> int:
    """Make a server's state what a backup holds; the server must not run.

    The backup may come from SQLite and go to PostgreSQL, from a folder and go to S3, and the other way round. An
    interrupted restore keeps the server from starting until it is asked for again.
    """
    from server import restore as work
    from server.cli_progress import counted

    if check and force:
        raise CommandError("--check changes nothing, and --force asks for it")
    with counted("files") as (begin, advance):
        if check:
            manifest, facts, words = work.check(folder, begin=begin, advance=advance), {}, "are whole"
        else:
            settings = _settings(state_dir, catalogue_url, blob_url)
            done = work.restore(
                folder,
                settings.state_dir,
                settings.catalogue,
                settings.open_blobs(),
                force=force,
                begin=begin,
                advance=advance,
            )
            manifest, facts = done.manifest, {"restored_generation": done.generation}
            words = f"are restored; generation {done.generation}"
    _print(manifest, as_json, {"folder": str(folder), **facts}, words)
    return 0


def _settings(state_dir: Path | None, catalogue_url: str | None, blob_url: str | None) -> "Settings":
    from server.cli_serve import settings_from

    given: dict[str, Any] = {"state_dir": state_dir, "catalogue_url": catalogue_url, "blob_url": blob_url}
    return settings_from({name: value for name, value in given.items() if value is not None})


def _print(manifest: "Manifest", as_json: bool, facts: dict[str, Any], words: str) -> None:
    if as_json:
        print_json({**asdict(manifest), **facts})
        return
    print(
        f"{manifest.names} adapters with {manifest.versions} versions, {manifest.keys} keys, {manifest.blobs} files of "
        f"{manifest.bytes:,} bytes, taken at {manifest.taken_at}, {words}"
    )
