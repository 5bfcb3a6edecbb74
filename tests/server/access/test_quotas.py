"""What one tenant may keep: adapters and bytes, held in the transaction that registers."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.admin import make_admin_app
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import QuotaExceededError
from server.records import Addition, Quota
from server.registry import Registry
from tests.server.fakes import House, tiny_adapter

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limited.sqlite"


def opened(path: Path, quota: Quota) -> Catalogue:
    return Catalogue(sqlite_url(path), is_writer=True, quota=quota)


@pytest.fixture
def two_adapters(path: Path) -> Iterator[Catalogue]:
    catalogue = opened(path, Quota(adapters=2))
    yield catalogue
    catalogue.close()


@pytest.fixture
def ten_bytes(path: Path) -> Iterator[Catalogue]:
    catalogue = opened(path, Quota(size_bytes=10))
    yield catalogue
    catalogue.close()


def test_adapter_too_many_is_refused_and_nothing_changes(two_adapters: Catalogue) -> None:
    two_adapters.add_version("acme/a", A, 1)
    two_adapters.add_version("acme/b", A, 1)
    with pytest.raises(QuotaExceededError, match="acme has 2 adapters, and may have 2") as caught:
        two_adapters.add_version("acme/c", A, 1)
    assert "delete" in str(caught.value.hint)
    assert (two_adapters.generation(), set(two_adapters.snapshot().adapters)) == (2, {"acme/a", "acme/b"})


def test_more_versions_of_what_is_there_and_other_tenants_are_no_more_adapters(two_adapters: Catalogue) -> None:
    for name in ("acme/a", "acme/b", "globex/a", "acme.x/a", "plain", "other", "third"):
        two_adapters.add_version(name, A, 1)
    two_adapters.add_version("acme/a", B, 1)
    assert two_adapters.add_version("acme/a", A, 1).version == 1


def test_versions_are_no_adapters(two_adapters: Catalogue) -> None:
    for sha256 in (A, B, C):
        two_adapters.add_version("acme/a", sha256, 1)
    two_adapters.add_version("acme/b", A, 1)


def test_deleted_adapter_makes_room(two_adapters: Catalogue) -> None:
    two_adapters.add_version("acme/a", A, 1)
    two_adapters.add_version("acme/b", A, 1)
    two_adapters.delete_name("acme/a")
    two_adapters.add_version("acme/c", A, 1)
    with pytest.raises(QuotaExceededError):
        two_adapters.add_version("acme/a", A, 1)


def test_bytes_of_all_versions_count(ten_bytes: Catalogue) -> None:
    ten_bytes.add_version("acme/a", A, 6)
    ten_bytes.add_version("acme/a", B, 4)
    with pytest.raises(QuotaExceededError, match="keeps 10 bytes, and may keep 10; this artefact has 1"):
        ten_bytes.add_version("acme/b", C, 1)
    assert ten_bytes.add_version("acme/a", B, 4).version == 2
    ten_bytes.delete_version("acme/a", 1)
    ten_bytes.add_version("acme/b", C, 6)


def test_group_counts_what_it_adds_itself(two_adapters: Catalogue) -> None:
    with pytest.raises(QuotaExceededError):
        two_adapters.add_versions([Addition(f"acme/{name}", A, 1) for name in "abc"])
    assert two_adapters.generation() == 0


async def test_registry_refuses_in_its_place_what_is_too_much(tmp_path: Path, two_adapters: Catalogue) -> None:
    one, two = tiny_adapter(1).to_bytes(), tiny_adapter(2).to_bytes()
    with House.open(tmp_path) as house:
        registry = Registry(two_adapters, house.blobs, house.replicas, answer_within_s=2)
        transport = httpx.ASGITransport(make_admin_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            files = [(name, ("x", one)) for name in ("acme/a", "acme/b", "acme/c", "globex/a", "acme/a")]
            results = (await client.post("/v1/adapters/bulk", files=files)).json()["results"]
            assert [result["status"] for result in results] == [201, 201, 507, 201, 200]
            refused = await client.put("/v1/adapters/acme/d", content=two)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (507, "QUOTA_EXCEEDED")
            assert len(house.files()) == 1  # the refused upload left nothing behind
