"""One replica of the data plane, complete: engine, its copy of the catalogue, batcher, HTTP application.

    settings -> Engine, Catalogue, BlobStore -> Replica -> Service -> make_app

Everything here runs without Ray, which only starts it, asks whether it is well, and passes on what the admin plane
and the other replicas say.
"""

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from starlette.types import ASGIApp

import adakron
from adakron import Engine, Result, Row
from adakron.compute_thread import ComputeThread
from adakron.resident import Lease
from server.access.caller import visible
from server.access.gate import Gate
from server.access.rates import RateLimits
from server.access.ring import KeyRing
from server.admin import admin_openapi
from server.admin_plane import AdminPlane
from server.app import make_app
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import EngineFailedError, OverloadedError, ServerError
from server.metrics import Metrics
from server.names import Reference
from server.replica import Replica, ReplicaStatus
from server.service import Service
from server.settings import Settings
from server.tally import Count
from server.telemetry.environment import open_tracing
from server.telemetry.logs import AccessLog
from server.telemetry.served import ServedCounts

log = logging.getLogger(__name__)

CPU_BUDGET_TOKENS = 2048
GPU_BUDGET_TOKENS = 16_384
# Rather refuse at once than answer late: this much waits at most, some two seconds of work on a CPU of two cores.
QUEUE_BATCHES = 32
QUEUE_LIMIT_ROWS = 4096
PROBE_TEXT = "Is anybody there?"
PROBED_ADAPTERS = 4
PROBE_TIMEOUT_S = 5.0
PROBE_VALID_S = 1.0


class DataPlane:
    """Parts of one replica, and what is asked of them. Methods that await belong to one event loop."""

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        blobs: BlobStore,
        settings: Settings,
        replica_id: str,
        compute: ComputeThread,
    ) -> None:
        self._engine = engine
        self._compute = compute
        self._catalogue = catalogue
        self._budget_tokens = settings.batch_budget_tokens or (
            CPU_BUDGET_TOKENS if engine.info().device == "cpu" else GPU_BUDGET_TOKENS
        )
        self._probed_at_s = float("-inf")
        self._probe: asyncio.Task[bool] | None = None
        self.metrics = Metrics(named_adapters=settings.metrics_adapters)
        self.metrics.watch(engine.residency)
        self.metrics.describe(_build(engine))
        served = ServedCounts()
        self.keys = KeyRing(settings.open_keys(), may_be_open=settings.is_loopback)
        self.rates = RateLimits(settings.rate_limit_rows, redis_url=settings.redis_url)
        self._cors = settings.cors
        self._access = AccessLog(settings.access_log)
        self._tracing = open_tracing(replica_id)
        self.replica = Replica(
            engine, catalogue, blobs, replica_id=replica_id, pinned=settings.pinned, on_activated=served.begin
        )
        self.service = Service(
            engine,
            self.replica,
            budget_tokens=self._budget_tokens,
            queue_limit_tokens=QUEUE_BATCHES * self._budget_tokens,
            queue_limit_rows=QUEUE_LIMIT_ROWS,
            metrics=self.metrics,
            served=served,
            tracing=self._tracing,
            on_worker=compute.take,
        )

    @classmethod
    def open(
        cls, settings: Settings, replica_id: str, threads: int, engine_class: type[Engine] = Engine
    ) -> "DataPlane":
        """Load the backbone and the hottest of the committed adapters; blocks for seconds.

        threads  that batches are computed on
        Raises BackboneError, StorageUnavailableError.
        """
        compute = ComputeThread(threads)
        engine = engine_class.load(
            settings.backbone,
            device=settings.device,
            dtype=settings.dtype,
            device_budget_bytes=settings.device_budget_bytes or "auto",
            host_budget_bytes=settings.host_budget_bytes,
            batch_invariant=settings.batch_invariant,
        )
        log.info("the engine runs %s", engine.info())
        catalogue = Catalogue(settings.catalogue, is_writer=False)
        plane = cls(engine, catalogue, settings.open_blobs(), settings, replica_id, compute)
        plane.replica.load()
        plane.keys.load()
        return plane

    async def start(self) -> None:
        """Take requests, once one row has gone all the way. Raises RuntimeError where none gets through."""
        await self.service.start()
        await asyncio.to_thread(self._compute.settle)
        await self.replica.start()
        await self.keys.start()
        if not await self.is_ready():
            raise RuntimeError("the engine does not answer a plain row")

    async def stop(self) -> None:
        """Finish what is inside, refuse what comes."""
        await self.service.stop()
        await self.replica.stop()
        await self.keys.stop()
        await self.rates.close()
        self._catalogue.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def is_ready(self) -> bool:
        """Whether rows of the backbone and of some adapters really get an answer; the finding is kept for a second."""
        if self._probe is None or (self._probe.done() and time.monotonic() - self._probed_at_s > PROBE_VALID_S):
            self._probe = asyncio.create_task(self._run_probe())
        return await asyncio.shield(self._probe)

    def app(
        self,
        collect_metrics: Callable[[], Awaitable[bytes]],
        admin: AdminPlane,
        collect_tallies: Callable[[Collection[str] | None], Awaitable[dict[str, Count]]],
    ) -> ASGIApp:
        """The HTTP application; what is collected is of all replicas. See `make_app`."""
        return make_app(
            self.service,
            info=self.info,
            is_ready=self.is_ready,
            collect_metrics=collect_metrics,
            admin_openapi=admin_openapi,
            adapters=self.replica,
            admin=admin,
            collect_tallies=collect_tallies,
            gate=Gate(self.keys, self.rates, self._cors),
            cors=self._cors,
            access=self._access,
            tracing=self._tracing,
        )

    def status(self, names: Sequence[str]) -> ReplicaStatus:
        """What this replica says of these adapters, for the admin listing."""
        status = self.replica.status(names)
        shadows = {name: self.service.shadows.verdicts(name, version) for name, version in self.replica.shadows(names)}
        return replace(status, shadows=shadows)

    def info(self) -> dict[str, Any]:
        """What runs here, for GET /v1/info."""
        engine = asdict(self._engine.info())
        return {
            "version": adakron.__version__,
            "replica": self.replica.replica_id,
            "generation": self.replica.generation,
            "names": len(visible(self.replica.names())),
            "engine": engine,
            "residency": asdict(self._engine.residency()),
            "limits": {
                "batch_budget_tokens": self._budget_tokens,
                "queue_limit_tokens": QUEUE_BATCHES * self._budget_tokens,
                "queue_limit_rows": QUEUE_LIMIT_ROWS,
                **self.rates.describe(),
            },
            "access": "open" if self.keys.is_open else "keys",
        }

    async def _run_probe(self) -> bool:
        try:
            return await self._probe_rows()
        except OverloadedError:
            return self.service.ready()  # busy is not broken
        except ServerError:
            return False
        finally:
            self._probed_at_s = time.monotonic()

    async def _probe_rows(self) -> bool:
        leases = [self._engine.lease(None)]
        try:
            for name in self.replica.names()[:PROBED_ADAPTERS]:
                try:
                    # Of this engine, though a resolver tells no more of it than serving needs.
                    lease: Lease = (await self.replica.resolve(Reference(name), None)).lease  # type: ignore[assignment]
                except ServerError:
                    continue  # a damaged adapter is its own trouble, not this replica's
                if lease.is_read:
                    leases.append(lease)
                else:  # what was never asked for is no sign of health, and a store may be slow
                    lease.release()
            rows = [_probe_row(lease) for lease in leases]
            outcomes = await self.service.run_rows(rows, leases, timeout_s=PROBE_TIMEOUT_S)
            base, *adapters = outcomes
            # An adapter that cannot answer this text is its own trouble; an engine that fails on all of them is ours.
            broken = bool(adapters) and all(isinstance(outcome, EngineFailedError) for outcome in adapters)
            return isinstance(base, Result) and not broken
        finally:
            for lease in leases:
                lease.release()


def _build(engine: Engine) -> dict[str, str]:
    """What runs, as labels. The backbone by its fingerprint too: a folder's name says little."""
    info = engine.info()
    return {
        "version": adakron.__version__,
        "python": platform.python_version(),
        "backbone": info.backbone,
        "weights_sha256": info.fingerprint.weights_sha256[:12],
        "device": info.device,
        "dtype": info.dtype,
        "kernels": info.kernels,
    }


def _probe_row(lease: Lease) -> Row:
    takes_pair = lease.config is not None and lease.config.takes_pair
    return Row(adapter=lease.key, text=PROBE_TEXT, text_pair=PROBE_TEXT if takes_pair else None)
