"""Seeding: what is new and fits is registered; what was ever held is left alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adakron.config import Fingerprint
from adakron.errors import AdaKronError
from server import state
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import InvalidRequestError
from server.seed import seed, shipped_adapters, write_down_configs
from tests.server.fakes import FINGERPRINT, tiny_adapter

OURS = Fingerprint(FINGERPRINT, FINGERPRINT, FINGERPRINT)
ONE, TWO = tiny_adapter(1), tiny_adapter(2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Catalogue, BlobStore]]:
    blobs = BlobStore(tmp_path / "blobs")
    with state.opened(sqlite_url(tmp_path / "c.sqlite"), blobs) as catalogue:
        yield catalogue, blobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ONE.write(tmp_path / "seeds" / "one")
    TWO.write(tmp_path / "seeds" / "two")
    (tmp_path / "seeds" / "README.md").write_text("not an adapter")
    (tmp_path / "seeds" / "empty").mkdir()
    return tmp_path / "seeds"


def test_each_folder_with_an_artefact_becomes_an_adapter(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    catalogue, blobs = store
    assert seed(catalogue, blobs, folder, OURS).added == ("one", "two")
    adapters = catalogue.snapshot().adapters
    assert {name: entry.versions[1].sha256 for name, entry in adapters.items()} == {
        "one": ONE.sha256,
        "two": TWO.sha256,
    }
    assert blobs.read(ONE.sha256) == ONE.to_bytes()


def test_second_start_adds_nothing(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    seed(*store, folder, OURS)
    assert seed(*store, folder, OURS).added == ()
    assert store[0].generation() == 2


def test_replaced_and_deleted_names_stay_so(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    catalogue, _ = store
    seed(*store, folder, OURS)
    catalogue.add_version("one", TWO.sha256, TWO.size_bytes)
    catalogue.delete_name("two")
    assert seed(*store, folder, OURS).added == ()
    snapshot = catalogue.snapshot()
    assert (snapshot.adapters["one"].active, list(snapshot.adapters)) == (2, ["one"])


def test_adapter_of_another_backbone_is_left_out_and_named(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    found = seed(*store, folder, Fingerprint("1" * 64, FINGERPRINT, FINGERPRINT))
    assert (found.added, found.misfits, store[0].generation()) == ((), ("one", "two"), 0)


def test_broken_artefact_raises(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    (folder / "one" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(AdaKronError):
        seed(*store, folder, OURS)


def test_folder_whose_name_no_adapter_may_have_raises(store: tuple[Catalogue, BlobStore], folder: Path) -> None:
    (folder / "one").rename(folder / "ONE")
    with pytest.raises(InvalidRequestError):
        seed(*store, folder, OURS)


def test_shipped_adapters_are_in_the_checkout(project_dir: Path) -> None:
    assert shipped_adapters() == project_dir / "adapters"


def test_configurations_are_written_down_where_the_blob_can_be_read(store: tuple[Catalogue, BlobStore]) -> None:
    catalogue, blobs = store
    with blobs.stage() as staged:
        staged.write(ONE.to_bytes())
        staged.keep()
    catalogue.add_version("one", ONE.sha256, 1)
    catalogue.add_version("lost", TWO.sha256, 1)
    write_down_configs(catalogue, blobs)
    assert {listed.name: listed.config for listed in catalogue.page(9)} == {"one": ONE.config.to_json(), "lost": None}
