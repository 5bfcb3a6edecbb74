"""One replica without Ray: a real tiny engine, the catalogue's adapters, readiness that is not a constant."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adakron import Adapter, Engine
from server import data_plane, state
from server.data_plane import DataPlane
from server.errors import EngineFailedError, OverloadedError
from server.settings import Settings
from tests.tiny import tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def engine() -> Engine:
    import torch

    return Engine(tiny_backbone(), torch.device("cpu"), torch.float32)


@pytest.fixture
async def plane(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DataPlane]:
    settings = Settings(state_dir=tmp_path)
    adapter: Adapter = tiny_adapter(tiny_backbone())
    blobs = settings.open_blobs()
    with state.opened(settings.catalogue, blobs) as catalogue:
        with blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        catalogue.add_version("acme/x", adapter.sha256, adapter.size_bytes)
    monkeypatch.setattr(Engine, "load", lambda *args, **options: engine)
    opened = DataPlane.open(settings, "r1", threads=1)
    await opened.start()
    yield opened
    await opened.stop()


async def metrics() -> bytes:
    return b""


async def get(plane: DataPlane, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(plane.app(metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(options.pop("method", "GET"), path, **options)


async def test_committed_adapter_answers(plane: DataPlane) -> None:
    body = {"adapter": "acme/x", "inputs": ["the word"]}
    response = await get(plane, "/v1/classify", method="POST", json=body)
    assert response.status_code == 200
    assert (response.json()["adapter"], response.json()["version"]) == ("acme/x", 1)


async def test_info_names_backbone_generation_and_limits(plane: DataPlane) -> None:
    info = (await get(plane, "/v1/info")).json()
    assert (info["replica"], info["generation"], info["names"]) == ("r1", 1, 1)
    assert info["engine"]["fingerprint"]["weights_sha256"]
    assert info["limits"]["batch_budget_tokens"] == data_plane.CPU_BUDGET_TOKENS


async def test_openapi_holds_both_planes(plane: DataPlane) -> None:
    paths = (await get(plane, "/openapi.json")).json()["paths"]
    assert {"/v1/classify", "/v1/adapters", "/v1/adapters/{name}/activate"} <= paths.keys()


async def test_ready_runs_a_row_of_the_backbone_and_of_an_adapter(
    plane: DataPlane, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str | None]] = []
    real = engine.run

    def run(rows: Any) -> Any:
        ran.append([row.lease.key for row in rows])
        return real(rows)

    monkeypatch.setattr(engine, "run", run)
    plane._probe = None
    assert (await get(plane, "/readyz")).status_code == 200
    assert ran == [[None, plane.replica._table.adapters["acme/x"].versions[1].sha256]]


async def test_ready_probe_is_shared_for_a_second(
    plane: DataPlane, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    real = engine.run

    def run(rows: Any) -> Any:
        nonlocal runs
        runs += 1
        return real(rows)

    monkeypatch.setattr(engine, "run", run)
    plane._probe = None
    assert all(await asyncio.gather(*(plane.is_ready() for _ in range(50))))
    assert runs == 1


async def test_ready_probe_is_made_again_after_a_second(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_plane, "PROBE_VALID_S", 0.0)
    assert await plane.is_ready()

    async def fail(*arguments: object, **options: object) -> Any:
        raise EngineFailedError("broken")

    monkeypatch.setattr(plane.service, "run_rows", fail)
    assert not await plane.is_ready()


async def test_engine_that_fails_is_not_ready(
    plane: DataPlane, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(rows: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(engine, "run", run)
    plane._probe = None
    assert (await get(plane, "/readyz")).status_code == 503


async def test_engine_that_fails_on_every_adapter_is_not_ready(
    plane: DataPlane, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.run

    def run(rows: Any) -> Any:
        if any(row.lease.key is not None for row in rows):
            raise RuntimeError("broken")
        return real(rows)

    monkeypatch.setattr(engine, "run", run)
    plane._probe = None
    assert (await get(plane, "/readyz")).status_code == 503


async def test_busy_is_ready(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*arguments: object, **options: object) -> Any:
        raise OverloadedError("full")

    monkeypatch.setattr(plane.service, "run_rows", full)
    plane._probe = None
    assert await plane.is_ready()


async def test_damaged_adapter_leaves_the_replica_ready(plane: DataPlane, engine: Engine) -> None:
    engine.remove(plane.replica._table.adapters["acme/x"].versions[1].sha256)
    plane._probe = None
    assert await plane.is_ready()


async def test_probe_returns_every_lease(plane: DataPlane, engine: Engine) -> None:
    plane._probe = None
    await plane.is_ready()
    sha256 = plane.replica._table.adapters["acme/x"].versions[1].sha256
    assert engine._residents._table[sha256].users == 0
