"""Loading and unloading by name, over a real registry: reversible, and never from a path."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adakron.errors import HeaderError
from server.admin_plane import RegistryAdmin
from server.errors import AdapterNotFoundError, AlreadyLoadedError, VersionNotFoundError
from server.names import Reference
from server.records import Origin
from server.split import Split
from tests.server.fakes import House, tiny_adapter

ONE, TWO, THREE = (tiny_adapter(seed) for seed in (1, 2, 3))
ME = Origin(source="127.0.0.1", request_id="r1")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House.open(tmp_path) as opened:
        yield opened


@pytest.fixture
async def plane(house: House) -> RegistryAdmin:
    """With three versions of x, of which the second answers."""
    for adapter in (ONE, TWO, THREE):
        await house.registry.put_bytes("x", adapter.to_bytes())
    await house.registry.activate("x", 2)
    return RegistryAdmin(house.registry)


async def answering(house: House) -> int | None:
    (replica, _) = house.replicas.replicas
    try:
        resolved = await replica.resolve(Reference("x"), None)
    except AdapterNotFoundError:
        return None
    resolved.lease.release()
    return resolved.version


async def test_unload_then_load_ends_where_it_began(house: House, plane: RegistryAdmin) -> None:
    unloaded = await plane.unload("x", origin=ME)
    assert (unloaded.name, unloaded.version, unloaded.sha256) == ("x", 2, TWO.sha256)
    assert await answering(house) is None
    assert (await house.replicas.replicas[0].resolve(Reference("x", 2), None)).version == 2
    assert await plane.load("x", None, may_replace=False, origin=ME) == unloaded
    assert await answering(house) == 2
    assert house.catalogue.history("x", 1)[0].source == "127.0.0.1"


async def test_load_of_a_staged_name_takes_the_newest(house: House, plane: RegistryAdmin) -> None:
    async def chunks(data: bytes):  # type: ignore[no-untyped-def]
        yield data

    for adapter in (ONE, TWO):
        await house.registry.put("staged", chunks(adapter.to_bytes()), activate=False)
    assert (await plane.load("staged", None, may_replace=False, origin=ME)).version == 2


async def test_load_of_the_last_active_version_that_is_gone_takes_the_newest(
    house: House, plane: RegistryAdmin
) -> None:
    await plane.unload("x", origin=ME)
    await house.registry.delete("x", 2)
    assert (await plane.load("x", None, may_replace=False, origin=ME)).version == 3


async def test_load_of_a_version_replaces_only_where_it_may(house: House, plane: RegistryAdmin) -> None:
    with pytest.raises(AlreadyLoadedError, match="version 2 answers"):
        await plane.load("x", 1, may_replace=False, origin=ME)
    assert await answering(house) == 2
    assert (await plane.load("x", 1, may_replace=True, origin=ME)).version == 1
    assert await answering(house) == 1


async def test_load_of_what_answers_changes_nothing_and_ends_no_split(house: House, plane: RegistryAdmin) -> None:
    await house.registry.split("x", Split({1: 50, 2: 50}))
    generation = house.catalogue.generation()
    assert (await plane.load("x", None, may_replace=True, origin=ME)).version == 2
    assert house.catalogue.generation() == generation


async def test_the_unknown_is_refused(plane: RegistryAdmin) -> None:
    with pytest.raises(AdapterNotFoundError):
        await plane.load("y", None, may_replace=True, origin=ME)
    with pytest.raises(VersionNotFoundError):
        await plane.load("x", 9, may_replace=True, origin=ME)
    with pytest.raises(AdapterNotFoundError):
        await plane.unload("y", origin=ME)
    await plane.unload("x", origin=ME)
    with pytest.raises(AdapterNotFoundError):
        await plane.unload("x", origin=ME)


async def test_upload_is_a_put(house: House, plane: RegistryAdmin) -> None:
    uploaded = await plane.upload("y", ONE.to_bytes(), origin=ME)
    assert (uploaded.version, uploaded.sha256) == (1, ONE.sha256)
    with pytest.raises(HeaderError):
        await plane.upload("z", b"\x80\x04junk" * 10, origin=ME)
