"""The whole server without Ray, in the process of a test: two replicas with tiny engines, and the admin application."""

import itertools
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import torch
from starlette.types import ASGIApp, Receive, Scope, Send

from adakron import Engine
from adakron.compute_thread import ComputeThread
from server.admin import PREFIX, make_admin_app
from server.admin_plane import AdminPlane, RegistryAdmin
from server.catalogue import Catalogue
from server.data_plane import DataPlane
from server.metrics import merge
from server.registry import Registry
from server.settings import Settings
from server.tally import Count, joined
from tests.server.fakes import LocalReplicas
from tests.tiny import tiny_backbone


class InProcessServer:
    """One ASGI application: requests go to the replicas in turns, as a proxy would send them."""

    def __init__(self, planes: Sequence[DataPlane], admin: ASGIApp, admin_plane: AdminPlane) -> None:
        self.planes = planes
        self._admin = admin
        self._turns = itertools.cycle([plane.app(self._metrics, admin_plane, self._tallies) for plane in planes])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_admin = scope["path"] == PREFIX or scope["path"].startswith(f"{PREFIX}/")
        await (self._admin if is_admin else next(self._turns))(scope, receive, send)

    async def _metrics(self) -> bytes:
        return merge({plane.replica.replica_id: plane.metrics.render() for plane in self.planes})

    async def _tallies(self, sha256s: Collection[str] | None) -> dict[str, Count]:
        return joined(plane.service.tally.counts(sha256s) for plane in self.planes)


@asynccontextmanager
async def in_process_server(
    state_dir: Path, *, device_budget_bytes: int | None = None
) -> AsyncIterator[tuple[InProcessServer, httpx.AsyncClient]]:
    """The server, and a client of it."""
    settings = Settings(state_dir=state_dir, device_budget_bytes=device_budget_bytes)
    catalogue, backbone = Catalogue(settings.catalogue, is_writer=True), tiny_backbone()
    planes = []
    for number in range(2):
        engine = Engine(backbone, torch.device("cpu"), torch.float32, device_budget_bytes, kernels="eager")
        reader = Catalogue(settings.catalogue, is_writer=False)
        blobs, compute = settings.open_blobs(), ComputeThread(threads=1)
        planes.append(DataPlane(engine, reader, blobs, settings, f"r{number}", compute))
        planes[-1].replica.load()
        await planes[-1].start()
    replicas = LocalReplicas([plane.replica for plane in planes])
    registry = Registry(catalogue, settings.open_blobs(), replicas)
    server = InProcessServer(planes, make_admin_app(registry), RegistryAdmin(registry))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(server), base_url="http://localhost", timeout=30
    ) as client:
        yield server, client
    for plane in planes:
        await plane.stop()
    catalogue.close()
