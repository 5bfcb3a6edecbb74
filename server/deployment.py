"""The two Ray Serve applications, and starting and stopping them. The only file that imports ray.

    clf     at /              N replicas of `Clf`, each a whole data plane: one process hop from client to engine
    admin   at /v1/adapters   one `Admin`, the one writer of the catalogue; it answers when the data plane is overloaded

Ray reads its environment when it is imported: import this module only after `server.ray_environment` has been applied.
"""

import asyncio
import contextlib
import io
import logging
import os
import threading
from collections.abc import Awaitable, Collection, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.api import RunTarget
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adakron.errors import AdaKronError
from server.access.gate import Gate
from server.access.rates import RateLimits
from server.access.ring import KeyRing
from server.admin import PREFIX, make_admin_app
from server.admin_plane import Loaded, RegistryAdmin
from server.allocator import keep_freed_memory
from server.catalogue import Catalogue
from server.errors import NotReadyError, OverloadedError, ServerError
from server.metrics import HttpMetrics, merge
from server.records import Origin
from server.registry import Registry
from server.replica import Applied, ReplicaStatus
from server.settings import Settings
from server.tally import Count, joined
from server.telemetry import logs
from server.telemetry.environment import open_tracing
from server.telemetry.logs import AccessLog
from server.telemetry.served import Served

if TYPE_CHECKING:
    from server.data_plane import DataPlane

log = logging.getLogger(__name__)

CLF, ADMIN = "clf", "admin"
COLLECT_WITHIN_S = 3.0
COUNT_EVERY_S = 5.0
COUNT_AGAIN_AFTER_S = 0.5
# Above what the batcher admits, so that it is our own 429 in JSON that a client sees, never Ray's in plain text.
MAX_ONGOING_REQUESTS = 8192
# Deadlines nest: ours 20 s, Ray's this or what a header asks for, HAProxy's above both.
REQUEST_TIMEOUT_S = 25.0
# Validating an upload must not take a core from rows that wait for it.
ADMIN_NICENESS = 5
# How soon a dead replica is replaced; a check costs less than a millisecond.
HEALTH_CHECK_EVERY_S = 1
# A connection on which nothing was asked for so long is closed.
KEEP_ALIVE_S = 15


@serve.deployment(
    name="Clf",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=256,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    max_constructor_retry_count=2,
    health_check_period_s=HEALTH_CHECK_EVERY_S,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class Clf:
    """A replica of the data plane."""

    async def __init__(self, settings: Settings, threads: int) -> None:  # type: ignore[misc]  # Ray awaits it
        replica_id = serve.get_replica_context().replica_id.unique_id
        logs.configure(
            logs.own_stderr(), level=settings.log_level, process=replica_id, access_share=settings.access_log
        )
        keep_freed_memory()
        self._plane = self.open_plane(settings, replica_id, threads)
        await self._plane.start()
        if not self._plane.rates.is_shared:
            self._counting = asyncio.create_task(self._count_replicas())

    @staticmethod
    def open_plane(settings: Settings, replica_id: str, threads: int) -> "DataPlane":
        """`DataPlane.open`; a benchmark that measures all but the engine puts another here."""
        from server.data_plane import DataPlane  # seconds of imports that the admin plane need not wait for

        return DataPlane.open(settings, replica_id, threads)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _OneRequestId(self._plane.app(self._collect_metrics, _AdminByHandle(), self._collect_tallies))

    async def check_health(self) -> None:
        """For Ray, every few seconds: cheap. Raises RuntimeError once a thread of the batcher is dead."""
        if not self._plane.service.ready():
            raise RuntimeError("the batcher is not running")

    async def apply(self, generation: int) -> Applied:
        """`Replica.apply`."""
        return await self._plane.replica.apply(generation)

    async def prove(self, sha256: str) -> dict[str, Any] | Exception:
        """`Replica.prove`; a refusal is returned, as Ray would wrap what is raised in an error of its own."""
        try:
            return await self._plane.replica.prove(sha256)
        except (AdaKronError, ServerError) as refusal:
            return refusal

    async def describe(self, names: Sequence[str]) -> ReplicaStatus:
        """`DataPlane.status`."""
        return self._plane.status(names)

    async def take_uses(self) -> dict[str, int]:
        """`Replica.take_uses`."""
        return self._plane.replica.take_uses()

    async def served(self, name: str, versions: Sequence[int]) -> dict[int, Served]:
        """`ServedCounts.of`."""
        return self._plane.service.served.of(name, versions)

    async def info(self) -> dict[str, Any]:
        """`DataPlane.info`."""
        return self._plane.info()

    async def ping(self) -> bool:
        """Whether this replica is there."""
        return True

    async def metrics_text(self) -> tuple[str, bytes]:
        """The id of this replica and its metrics."""
        return self._plane.replica.replica_id, self._plane.metrics.render()

    async def tally(self, sha256s: Collection[str] | None) -> tuple[str, dict[str, Count]]:
        """The id of this replica and its `Tally.counts`."""
        return self._plane.replica.replica_id, self._plane.service.tally.counts(sha256s)

    async def __del__(self) -> None:
        """Ray calls it when the replica stops."""
        if hasattr(self, "_plane"):
            await self._plane.stop()

    async def _count_replicas(self) -> None:
        """Keep up with how many share the work, and with it each limit on what a key may ask."""
        handle = serve.get_deployment_handle("Clf", app_name=CLF)
        while True:
            alive = sum(answer is True for answer in await _broadcast(handle, "ping", log_level=logging.DEBUG))
            if alive:  # none: Ray is still starting them, this one among them
                self._plane.rates.shares = alive
            await asyncio.sleep(COUNT_EVERY_S if alive else COUNT_AGAIN_AFTER_S)

    async def _collect_metrics(self) -> bytes:
        """Of all replicas that answer in time, this one always among them."""
        texts = dict([await self.metrics_text()])
        handle = serve.get_deployment_handle("Clf", app_name=CLF)
        texts.update(text for text in await _broadcast(handle, "metrics_text") if isinstance(text, tuple))
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError, RayServeException):
            admin: DeploymentHandle[Any] = serve.get_deployment_handle("Admin", app_name=ADMIN)
            texts[ADMIN] = await asyncio.wait_for(admin.metrics_text.remote(), COLLECT_WITHIN_S)
        return merge(texts)

    async def _collect_tallies(self, sha256s: Collection[str] | None) -> dict[str, Count]:
        """Summed over all replicas that answer in time, this one always among them."""
        tallies = dict([await self.tally(sha256s)])
        handle = serve.get_deployment_handle("Clf", app_name=CLF)
        tallies.update(tally for tally in await _broadcast(handle, "tally", sha256s) if isinstance(tally, tuple))
        return joined(tallies.values())


@serve.deployment(
    name="Admin",
    max_ongoing_requests=64,
    max_queued_requests=64,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    ray_actor_options={"num_cpus": 0.1},
    health_check_period_s=HEALTH_CHECK_EVERY_S,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class Admin:
    """The admin plane."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        logs.configure(logs.own_stderr(), level=settings.log_level, process=ADMIN, access_share=settings.access_log)
        self._metrics = HttpMetrics()
        self._access = AccessLog(settings.access_log)
        os.nice(ADMIN_NICENESS)
        catalogue = Catalogue(
            settings.catalogue, is_writer=True, quota=settings.quota, keep_versions=settings.keep_versions
        )
        self._registry = Registry(catalogue, settings.open_blobs(), _ReplicasByHandle())
        self._keys = KeyRing(settings.open_keys(), may_be_open=settings.is_loopback)
        self._keys.load()
        await self._keys.start()
        self._cors = settings.cors
        self._chores = [
            asyncio.create_task(chore) for chore in (self._registry.keep_tidy(), self._registry.note_uses())
        ]
        self._plane = RegistryAdmin(self._registry)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        gate = Gate(self._keys, RateLimits(None), self._cors)
        app = make_admin_app(
            self._registry,
            gate,
            self._cors,
            metrics=self._metrics,
            access=self._access,
            tracing=open_tracing(ADMIN),
        )
        return _OneRequestId(app)

    async def metrics_text(self) -> bytes:
        """The metrics of this process."""
        return self._metrics.render()

    async def load(self, name: str, version: int | None, may_replace: bool, origin: Origin) -> Loaded | Exception:
        """`AdminPlane.load`; a refusal is returned, as `Clf.prove` does."""
        return await _or_refusal(self._plane.load(name, version, may_replace=may_replace, origin=origin))

    async def unload(self, name: str, origin: Origin) -> Loaded | Exception:
        """`AdminPlane.unload`."""
        return await _or_refusal(self._plane.unload(name, origin=origin))

    async def upload(self, name: str, artefact: bytes, origin: Origin) -> Loaded | Exception:
        """`AdminPlane.upload`."""
        return await _or_refusal(self._plane.upload(name, artefact, origin=origin))


class _OneRequestId:
    """Ray adds the request id to every reply, and so do our applications: leave it to Ray where both say the same."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked = _values(scope, b"x-request-id")
                if asked and _values(message, b"x-request-id") == asked[:1]:
                    message["headers"] = [field for field in message["headers"] if field[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_once)


def _values(carrier: MutableMapping[str, Any], name: bytes) -> list[bytes]:
    return [value for field, value in carrier["headers"] if field == name]


class _ReplicasByHandle:
    """`server.registry.Replicas` over Ray's handle."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle("Clf", app_name=CLF)

    async def prove(self, sha256: str) -> dict[str, Any]:
        try:
            proof: dict[str, Any] | Exception = await self._handle.prove.remote(sha256)
        except (ray.exceptions.RayError, RayServeException) as error:
            raise NotReadyError("no replica is there to try the adapter; nothing was registered") from error
        if isinstance(proof, Exception):
            raise proof
        return proof

    async def broadcast(self, generation: int) -> list[Applied]:
        answers = await _broadcast(self._handle, "apply", generation)
        return [answer if isinstance(answer, Applied) else Applied("unreachable", -1, 0) for answer in answers]

    async def describe(self, names: Sequence[str]) -> list[ReplicaStatus]:
        answers = await _broadcast(self._handle, "describe", names)
        return [answer for answer in answers if isinstance(answer, ReplicaStatus)]

    async def take_uses(self) -> list[dict[str, int]]:
        answers = await _broadcast(self._handle, "take_uses")
        return [answer for answer in answers if isinstance(answer, dict)]

    async def served(self, name: str, versions: Sequence[int]) -> list[dict[int, Served]]:
        answers = await _broadcast(self._handle, "served", name, versions)
        return [answer for answer in answers if isinstance(answer, dict)]


class _AdminByHandle:
    """`server.admin_plane.AdminPlane` over Ray's handle, which is looked up when it is first needed."""

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        return await self._ask("load", name, version, may_replace, origin)

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        return await self._ask("unload", name, origin)

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        return await self._ask("upload", name, artefact, origin)

    async def _ask(self, method: str, *arguments: object) -> Loaded:
        try:
            handle: DeploymentHandle[Any] = serve.get_deployment_handle("Admin", app_name=ADMIN)
            answer: Loaded | Exception = await getattr(handle, method).remote(*arguments)
        except BackPressureError as error:
            raise OverloadedError("too many changes of adapters are under way") from error
        except (ray.exceptions.RayError, RayServeException) as error:
            raise NotReadyError("the admin application does not answer; whether it did is not known") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _or_refusal(work: Awaitable[Loaded]) -> Loaded | Exception:
    """What it returns, or the refusal it raises: Ray would wrap what is raised in an error of its own."""
    try:
        return await work
    except (AdaKronError, ServerError) as refusal:
        return refusal


async def _broadcast(
    handle: DeploymentHandle[Any], method: str, *arguments: object, log_level: int = logging.WARNING
) -> list[object]:
    """What every replica answers to a method, or its exception; nothing where they cannot be asked or are late."""
    try:
        answers: list[object] = await handle.broadcast(method, *arguments).results_async(
            timeout_s=COLLECT_WITHIN_S if method != "apply" else None, return_exceptions=True
        )
    except (TimeoutError, ray.exceptions.RayError, RayServeException) as error:
        log.log(log_level, "the replicas do not answer to %s: %s", method, type(error).__name__)
        return []
    return answers


def start(settings: Settings, *, replicas: int, threads: int, gpus: float, clf: Any = Clf) -> str:
    """Start a Ray of our own and both applications; returns when all replicas are up.

    replicas  of Clf
    threads   of torch in each
    gpus      for each, a fraction where several share one
    clf       the deployment of the data plane
    Returns the folder of Ray's logs. Raises whatever Ray does where a process or a replica cannot start.
    """
    context = ray.init(
        address="local",
        include_dashboard=False,
        # Processes are counted, not cores: how the cores are shared is said by `threads`.
        num_cpus=replicas + 2,
        object_store_memory=100 << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(
            host=settings.host,
            port=settings.port,
            request_timeout_s=REQUEST_TIMEOUT_S,
            keep_alive_timeout_s=KEEP_ALIVE_S,
        ),
        logging_config=LoggingConfig(encoding="JSON", enable_access_log=False, log_level=settings.log_level),
    )
    data_plane = clf.options(num_replicas=replicas, ray_actor_options={"num_cpus": 1, "num_gpus": gpus})
    admin = Admin.bind(settings)  # type: ignore[attr-defined]  # what Ray's decorator made of the class
    try:
        serve.run_many([RunTarget(data_plane.bind(settings, threads), CLF, "/"), RunTarget(admin, ADMIN, PREFIX)])
    except RuntimeError as error:
        raise RuntimeError(_cause() or str(error)) from error
    return str(context.address_info["session_dir"])  # type: ignore[attr-defined]  # of a local cluster's context


def info() -> dict[str, Any]:
    """What one of the replicas says of itself. Raises whatever Ray does where none answers in time."""

    async def ask() -> dict[str, Any]:
        handle: DeploymentHandle[Any] = serve.get_deployment_handle("Clf", app_name=CLF)
        found: dict[str, Any] = await asyncio.wait_for(handle.info.remote(), COLLECT_WITHIN_S)
        return found

    # With Ray's settings for throughput a handle works in the event loop it was made in, and complains once that ends.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(ask(), loop).result()


def _cause() -> str:
    """The last line of what a failed replica said: its exception. Ray's own error names the deployment alone."""
    applications = serve.status().applications.values()
    messages = [deployment.message for app in applications for deployment in app.deployments.values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if "Error: " in line]
    return lines[-1] if lines else ""


def stop() -> None:
    """Stop the applications, then Ray; nothing where they never started."""
    if not ray.is_initialized():
        return
    with contextlib.redirect_stdout(io.StringIO()):  # Ray reports the end of its own actors as errors
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray gives it no types
        ray.shutdown()
