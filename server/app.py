"""The data plane's HTTP: routes, headers, documentation. Joins service, guard, metrics and errors; decides nothing.

    POST /v1/classify   GET /v1/info   GET /healthz /readyz /metrics /docs /openapi.json   and the dialects' routes

Layers, outermost first: RequestRecorder counts, Guard bounds what is read, Envelope adds the request id and catches,
Shortcut enters the native route, FastAPI routes the rest. Adapters are registered elsewhere, by the admin application;
only its documentation is shown here. Knows nothing of Ray.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import dialects, examples, metrics, openapi
from server.access.cors import allow_origins
from server.access.documents import with_access
from server.access.gate import Gate, Needed, guard_routes, needs, scopes_of
from server.admin_plane import AdminPlane, OwnNames
from server.call_headers import reply_headers, timeout_s
from server.dialects import add_dialects, vllm, vllm_examples
from server.dialects.backend import Adapters, Backend
from server.disconnect import unless_gone
from server.docs_page import add_docs
from server.error_replies import install_error_handlers
from server.errors import NotReadyError, ServerError
from server.guard import Guard
from server.json_body import read_json
from server.schemas import (
    MAX_BODY_BYTES,
    ItemsRequest,
    ManyAdaptersRequest,
    OneAdapterRequest,
    parse_classify_request,
)
from server.service import Service
from server.shortcut import DirectRoute, Shortcut
from server.tally import Count
from server.telemetry.environment import trace_requests
from server.telemetry.logs import AccessLog

if TYPE_CHECKING:  # installed only where traces are wanted
    from server.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

READY_WITHIN_S = 5.0
_encode_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

# Of routes that the framework makes.
FRAMEWORK_ROUTES = {"/openapi.json": Needed("read")}

Info = Callable[[], Mapping[str, Any]]


def make_app(
    service: Service,
    *,
    info: Info,
    is_ready: Callable[[], Awaitable[bool]],
    collect_metrics: Callable[[], Awaitable[bytes]],
    admin_openapi: Callable[[], dict[str, Any]],
    adapters: Adapters,
    admin: AdminPlane,
    collect_tallies: Callable[[Collection[str] | None], Awaitable[dict[str, Count]]],
    gate: Gate | None = None,
    cors: Sequence[str] = (),
    access: AccessLog | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """The ASGI application of one replica.

    info             plain JSON for GET /v1/info
    is_ready         whether backbone and adapters really answered, just now or a moment ago
    collect_metrics  Prometheus' text of all replicas
    admin_openapi    the admin application's document, its paths absolute
    adapters         those of this replica
    admin            the admin plane, for the dialects that load and unload
    collect_tallies  what all replicas counted for these contents, or for all
    gate             who may do what; without one, everybody everything
    cors             origins of web pages that may call
    access           where requests are logged
    tracing          what makes spans, where traces are wanted
    """
    app = FastAPI(
        title="AdaKron server",
        description="Text classification by thousands of AdaKron adapters on one frozen encoder.",
        version="1",
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own OpenTelemetry costs every request, and would put refused input into an operator's log pipeline.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    backend = Backend(service, adapters, OwnNames(admin), info, partial(_answers, is_ready), collect_tallies)
    _add_classify(app, backend)
    _add_info(app, info)
    _add_operations(app, service, is_ready, collect_metrics)
    add_dialects(app, backend)
    _merge_documents(app, admin_openapi)
    add_docs(app)
    guard_routes(app, gate or Gate(), FRAMEWORK_ROUTES)
    app.add_middleware(Shortcut, routes=[route for route in app.routes if isinstance(route, DirectRoute)])
    install_error_handlers(app)
    app.add_middleware(Guard, max_body_bytes=MAX_BODY_BYTES, bounds_of=dialects.bounds_of)
    allow_origins(app, cors)
    trace_requests(app, tracing)
    app.add_middleware(metrics.RequestRecorder, metrics=service.metrics, access=access)
    return app


def _add_classify(app: FastAPI, backend: Backend) -> None:
    @needs("classify")
    async def classify(request: Request) -> Response:
        """Run texts through one adapter, several, or one named per text.

        A text that cannot be classified is an error in its place, and `errors` counts those; where none succeeded the
        whole call has the first one's status. Below the score `abstain_below`, or the adapter's own threshold, a text
        has no label: `abstained` is true, `label` null. `name@3` or `name@sha256:...` pins a version; calls with one
        X-Route-Key stay on one version of a split. The deadline is the header X-Timeout-S. A body with model and input
        is answered in vLLM's shape, as on /classify.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        within_s = timeout_s(request)
        body = await read_json(request)
        if vllm.is_for_vllm(body):
            return await vllm.answer(backend, request, body)
        parsed = parse_classify_request(body)
        route_key = request.headers.get("x-route-key")
        work = backend.service.classify(parsed, timeout_s=within_s, route_key=route_key)
        classified = await unless_gone(request.receive, work)
        reply = _encode_json(classified.answer).encode()
        return Response(reply, headers=reply_headers(classified), media_type="application/json")

    app.router.add_api_route(
        "/v1/classify",
        classify,
        methods=["POST"],
        summary="Classify texts",
        tags=["classify"],
        response_class=JSONResponse,
        response_model=None,
        responses=vllm_examples.SHARED_CLASSIFY,
        openapi_extra=vllm_examples.SHARED_CLASSIFY_BODY,
        route_class_override=DirectRoute,
    )


def _add_info(app: FastAPI, info: Info) -> None:
    @app.get(
        "/v1/info",
        summary="What is served",
        tags=["operations"],
        response_model=None,
        responses=examples.INFO,
    )
    @needs("read")
    async def get_info() -> JSONResponse:
        """Describe the backbone with its fingerprint, the limits, and this replica.

        Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 429, 431.
        """
        return JSONResponse(dict(info()))


def _add_operations(
    app: FastAPI,
    service: Service,
    is_ready: Callable[[], Awaitable[bool]],
    collect_metrics: Callable[[], Awaitable[bytes]],
) -> None:
    @app.get(
        "/healthz",
        summary="Is the process alive",
        tags=["operations"],
        response_model=None,
        responses=examples.HEALTHZ,
    )
    async def healthz() -> JSONResponse:
        """Answer as long as the event loop turns, whatever else is broken.

        Statuses: 200, 400, 408, 413, 414, 415, 431.
        """
        return JSONResponse({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Can it classify",
        tags=["operations"],
        response_model=None,
        responses=examples.READYZ,
    )
    async def readyz() -> JSONResponse:
        """Answer 200 only where a row really went through backbone and adapters, just now or a moment ago.

        Statuses: 200, 400, 408, 413, 414, 415, 431, 503.
        """
        if not (service.ready() and await _answers(is_ready)):
            raise NotReadyError("backbone or adapters do not answer", hint="ask again after the time in Retry-After")
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        summary="Counters of all replicas",
        tags=["operations"],
        response_model=None,
        responses=examples.METRICS,
        response_class=Response,
    )
    @needs("read", whole=True)
    async def get_metrics() -> Response:
        """Collect what every replica counted. Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 429, 431, 503."""
        return Response(await collect_metrics(), headers={"content-type": metrics.CONTENT_TYPE})


def _merge_documents(app: FastAPI, admin_openapi: Callable[[], dict[str, Any]]) -> None:
    own = app.openapi
    document: dict[str, Any] = {}

    def whole() -> dict[str, Any]:
        if not document:
            bodies = openapi.schemas_of(OneAdapterRequest, ManyAdaptersRequest, ItemsRequest, *dialects.BODIES)
            with_scopes = with_access(own(), scopes_of(app, FRAMEWORK_ROUTES))
            document.update(openapi.merged(with_scopes, admin_openapi(), bodies))
        return document

    # FastAPI's documented way to extend the document is to replace this method.
    app.openapi = whole  # type: ignore[method-assign]


async def _answers(is_ready: Callable[[], Awaitable[bool]]) -> bool:
    """Whether the probe says so; one that takes too long or is refused says no."""
    try:
        return await asyncio.wait_for(is_ready(), READY_WITHIN_S)
    except (TimeoutError, ServerError) as error:
        logger.warning("the readiness probe failed: %r", error)
        return False
