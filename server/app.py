"""The data plane's HTTP: routes, headers, documentation. Joins service, guard, metrics and errors; decides nothing.

    POST /v1/classify   GET /v1/info   GET /healthz /readyz /metrics /docs /openapi.json

Layers, outermost first: RequestRecorder counts, Guard bounds what is read, Envelope adds the request id and catches,
FastAPI routes. Adapters are registered elsewhere, by the admin application; only its documentation is shown here.
Knows nothing of Ray.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import examples, metrics, openapi
from server.access.cors import allow_origins
from server.access.documents import with_access
from server.access.gate import Gate, Needed, guard_routes, needs, scopes_of
from server.disconnect import unless_gone
from server.error_replies import install_error_handlers
from server.errors import InvalidRequestError, NotReadyError, ServerError, quoted
from server.guard import Guard
from server.json_body import read_json
from server.schemas import (
    MAX_BODY_BYTES,
    ItemsRequest,
    ManyAdaptersRequest,
    OneAdapterRequest,
    parse_classify_request,
)
from server.service import MAX_TIMEOUT_S, Classified, Service

logger = logging.getLogger(__name__)

READY_WITHIN_S = 5.0

# Of routes that the framework makes.
FRAMEWORK_ROUTES = {"/openapi.json": Needed("read"), "/docs": Needed("read")}

_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

Info = Callable[[], Mapping[str, Any]]


def make_app(
    service: Service,
    *,
    info: Info,
    is_ready: Callable[[], Awaitable[bool]],
    collect_metrics: Callable[[], Awaitable[bytes]],
    admin_openapi: Callable[[], dict[str, Any]],
    gate: Gate | None = None,
    cors: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application of one replica.

    info             plain JSON for GET /v1/info
    is_ready         whether backbone and adapters really answered, just now or a moment ago
    collect_metrics  Prometheus' text of all replicas
    admin_openapi    the admin application's document, its paths absolute
    gate             who may do what; without one, everybody everything
    cors             origins of web pages that may call
    """
    app = FastAPI(
        title="AdaKron server",
        description="Text classification by thousands of AdaKron adapters on one frozen encoder.",
        version="1",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        # FastAPI's own OpenTelemetry costs every request, and would put refused input into an operator's log pipeline.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_classify(app, service)
    _add_info(app, info)
    _add_operations(app, service, is_ready, collect_metrics)
    _merge_documents(app, admin_openapi)
    guard_routes(app, gate or Gate(), FRAMEWORK_ROUTES)
    install_error_handlers(app)
    app.add_middleware(Guard, max_body_bytes=MAX_BODY_BYTES)
    allow_origins(app, cors)
    app.add_middleware(metrics.RequestRecorder, metrics=service.metrics)
    return app


def _add_classify(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/classify",
        summary="Classify texts",
        tags=["classify"],
        response_class=JSONResponse,
        response_model=None,
        responses=examples.CLASSIFY,
        openapi_extra=examples.CLASSIFY_REQUEST,
    )
    @needs("classify")
    async def classify(request: Request) -> Response:
        """Run texts through one adapter, several, or one named per text.

        A text that cannot be classified is an error in its place, and `errors` counts those; where none succeeded the
        whole call has the first one's status. `name@3` or `name@sha256:...` pins a version; calls with one X-Route-Key
        stay on one version of a split. The deadline is the header X-Timeout-S.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        timeout_s = _timeout_s(request.headers.get("x-timeout-s"))
        parsed = parse_classify_request(await read_json(request))
        route_key = request.headers.get("x-route-key")
        work = service.classify(parsed, timeout_s=timeout_s, route_key=route_key)
        classified = await unless_gone(request.receive, work)
        body = json.dumps(classified.answer, allow_nan=False, separators=(",", ":")).encode()
        return Response(body, headers=_headers(classified), media_type="application/json")


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
            bodies = openapi.schemas_of(OneAdapterRequest, ManyAdaptersRequest, ItemsRequest)
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


def _timeout_s(header: str | None) -> float:
    """Seconds from X-Timeout-S. Raises InvalidRequestError (422) unless it is a positive decimal number."""
    if header is None:
        return MAX_TIMEOUT_S
    if not _DECIMAL.fullmatch(header) or not float(header) > 0:
        raise InvalidRequestError(
            f"X-Timeout-S is {quoted(header)}, not a positive number of seconds", param="X-Timeout-S"
        )
    return min(float(header), MAX_TIMEOUT_S)


def _headers(classified: Classified) -> dict[str, str]:
    stages = classified.stages
    headers = {
        "server-timing": f"tokenize;dur={stages.tokenize_s * 1000:.1f}, queue;dur={stages.queue_s * 1000:.1f}, "
        f"forward;dur={stages.forward_s * 1000:.1f}"
    }
    if classified.adapter is not None:
        headers["x-adapter-id"] = classified.adapter["adapter"]
        headers["x-adapter-version"] = str(classified.adapter["version"])
        headers["x-adapter-sha256"] = classified.adapter["sha256"][:12]
    return headers
