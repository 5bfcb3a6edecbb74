"""Before the service runs: adapters to begin with, and what a catalogue of an earlier release did not write down.

Each folder that holds an artefact is registered under the folder's name. A name that the catalogue ever held is left
alone: what somebody replaced or deleted must not come back with a restart. Knows nothing of HTTP or Ray.
"""

from dataclasses import dataclass
from pathlib import Path

from adakron import Adapter
from adakron.artefact import WEIGHTS_FILE
from adakron.config import Fingerprint
from adakron.errors import AdaKronError
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import ServerError
from server.names import check_name
from server.records import Origin


@dataclass(frozen=True, slots=True)
class Seeded:
    """Names that were registered, and those left out because they were made for another backbone."""

    added: tuple[str, ...]
    misfits: tuple[str, ...]


def shipped_adapters() -> Path:
    """The adapters that come with the package: inside it when installed, beside it in a checkout."""
    inside = Path(__file__).with_name("shipped_adapters")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "adapters"


def seed(catalogue: Catalogue, blobs: BlobStore, folder: Path, fingerprint: Fingerprint) -> Seeded:
    """Register what is new in `folder` and made for the backbone of that fingerprint.

    Raises the FormatError family and ConfigError for a broken artefact, InvalidRequestError for a folder whose name
    cannot be an adapter's, StorageFullError, StorageUnavailableError. What came before the error stays registered.
    """
    held = catalogue.names_ever_held()
    added, misfits = [], []
    for weights in sorted(folder.glob(f"*/{WEIGHTS_FILE}")):
        name = check_name(weights.parent.name)
        if name in held:
            continue
        adapter = Adapter.from_folder(weights.parent)
        if adapter.config.base_fingerprint != fingerprint:
            misfits.append(name)
            continue
        with blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        config = adapter.config.to_json()
        catalogue.add_version(name, adapter.sha256, adapter.size_bytes, config=config, origin=Origin(source="seed"))
        added.append(name)
    return Seeded(tuple(added), tuple(misfits))


def write_down_configs(catalogue: Catalogue, blobs: BlobStore) -> None:
    """Fill in the configurations that format 1 did not hold; a blob that cannot be read is left for another start."""
    for sha256 in sorted(catalogue.without_config()):
        try:
            adapter = Adapter.from_bytes(blobs.read(sha256))
        except (AdaKronError, ServerError):
            continue
        catalogue.set_config(sha256, adapter.config.to_json())
