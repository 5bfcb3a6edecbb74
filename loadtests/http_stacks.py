"""The servers that the HTTP benchmark measures beside `python -m server`: `python -m loadtests.http_stacks`.

    uvicorn engine   the data plane's application as it is, in one process under plain uvicorn
    uvicorn stub     the same with an engine that answers at once, and an echo route beside it
    ray stub         that application and that echo route on Ray Serve and HAProxy, started as the server starts them

These are child processes of the benchmark and the one place of the load tests that knows the server from within.
"""

import argparse
import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from adakron import Engine
from adakron.backbone import Backbone
from loadtests.http_stub import StubEngine
from server import processes, ray_environment, state
from server.admin_plane import Loaded
from server.allocator import keep_freed_memory
from server.data_plane import DataPlane
from server.errors import NotReadyError
from server.records import Origin
from server.seed import seed, shipped_adapters
from server.settings import Settings
from server.tally import Count

ECHO = "/echo"
ECHO_PATH = f"{ECHO}/classify"
ENGINES: dict[str, type[Engine]] = {"engine": Engine, "stub": StubEngine}


class EchoRequest(BaseModel):
    """What the native route takes."""

    adapter: str
    inputs: str | list[str]


class EchoScore(BaseModel):
    """A label and its score."""

    label: str
    score: float


class EchoResult(BaseModel):
    """A result as the native route has it."""

    label: str
    score: float
    scores: list[EchoScore]
    n_tokens: int
    truncated: bool


class EchoReply(BaseModel):
    """A reply of the native route's size."""

    adapter: str
    version: int
    sha256: str
    results: list[EchoResult]


def make_echo_app(path: str) -> FastAPI:
    """The floor: a FastAPI application with one route, that parses a body of the native size and answers with one."""
    app = FastAPI()

    @app.post(path)
    async def echo(request: EchoRequest) -> EchoReply:
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        one = EchoResult(
            label="positive",
            score=0.5,
            scores=[EchoScore(label="positive", score=0.5)],
            n_tokens=16,
            truncated=False,
        )
        return EchoReply(adapter=request.adapter, version=1, sha256="0" * 64, results=[one] * len(texts))

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.http_stacks")
    parser.add_argument("stack", choices=("uvicorn", "ray"))
    parser.add_argument("engine", choices=tuple(ENGINES))
    chosen = parser.parse_args(arguments)
    settings = Settings()
    threads = len(os.sched_getaffinity(0))
    with state.locked(settings.state_dir):
        _fill(settings)
        if chosen.stack == "uvicorn":
            keep_freed_memory()
            uvloop.run(_serve_plainly(settings, threads, ENGINES[chosen.engine]))  # as Ray does
        else:
            _serve_by_ray(settings, threads)
    return 0


def _fill(settings: Settings) -> None:
    blobs = settings.open_blobs()
    with state.opened(settings.catalogue, blobs) as catalogue:
        seed(catalogue, blobs, shipped_adapters(), Backbone.load(settings.backbone).fingerprint)


async def _serve_plainly(settings: Settings, threads: int, engine_class: type[Engine]) -> None:
    plane = DataPlane.open(settings, "plain", threads, engine_class)
    await plane.start()

    async def own_metrics() -> bytes:
        return plane.metrics.render()

    async def own_tallies(sha256s: Collection[str] | None) -> dict[str, Count]:
        return plane.service.tally.counts(sha256s)

    native, echo = plane.app(own_metrics, _NoAdmin(), own_tallies), make_echo_app(ECHO_PATH)

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await (echo if scope["path"] == ECHO_PATH else native)(scope, receive, send)

    # As Ray Serve runs it in a replica.
    config = uvicorn.Config(
        either,
        host=settings.host,
        port=settings.port,
        lifespan="off",
        access_log=False,
        log_level=None,
        log_config=None,
    )
    try:
        await uvicorn.Server(config).serve()
    finally:
        await plane.stop()


def _serve_by_ray(settings: Settings, threads: int) -> None:
    token_path = settings.state_dir / "ray_token"
    ray_environment.make_token(token_path)
    ray_environment.apply(
        ray_environment.ray_environment(token_path=token_path, uses_haproxy=True, cores=threads, threads=threads)
    )
    processes.adopt_orphans()
    from ray import serve

    from server import deployment

    def open_plane(settings: Settings, replica_id: str, threads: int) -> DataPlane:
        return DataPlane.open(settings, replica_id, threads, StubEngine)

    clf: Any = deployment.Clf  # Ray's decorator returns a Deployment and says that it returns the class
    stub_clf = type("StubClf", (clf.func_or_class,), {"open_plane": staticmethod(open_plane)})

    @serve.deployment(
        name="Echo",
        max_ongoing_requests=deployment.MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
    )
    @serve.ingress()
    class Echo:
        def __serve_build_asgi_app__(self) -> ASGIApp:
            return make_echo_app("/classify")

    try:
        deployment.start(settings, replicas=1, threads=threads, gpus=0, clf=clf.options(func_or_class=stub_clf))
        echo: Any = Echo
        serve.run(echo.bind(), name="echo", route_prefix=ECHO)
        signal.signal(signal.SIGTERM, _end)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        deployment.stop()
        processes.end_descendants(grace_s=5.0)


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class _NoAdmin:
    """There is no admin application beside these servers."""

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        raise NotReadyError("nothing is loaded here")

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        raise NotReadyError("nothing is unloaded here")

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        raise NotReadyError("nothing is uploaded here")


if __name__ == "__main__":
    sys.exit(main())
