"""The admin routes, everything at and below /v1/adapters: HTTP in front of `server.registry`.

    GET /v1/adapters    GET, PUT, DELETE /v1/adapters/{name}    GET /v1/adapters/{name}/stats
    POST /v1/adapters/bulk    POST /v1/adapters/{name}/activate
    PUT /v1/adapters/{name}/split    GET /v1/adapters/{name}/versions/{version}

A name has one or two segments. An adapter's ETag is the generation of its last change; If-Match holds every write to
it. Knows nothing of Ray, files or tensors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from server import admin_documents, errors
from server.access.caller import check_own_name, current_caller
from server.access.cors import allow_origins
from server.access.documents import with_access
from server.access.gate import Gate, guard_routes, needs, scopes_of
from server.admin_replies import (
    activate_reply,
    bulk_reply,
    delete_reply,
    description,
    put_reply,
    split_reply,
    summary,
)
from server.blobs import MAX_BLOB_BYTES
from server.bulk import MAX_BULK_ARTEFACTS, MAX_BULK_BYTES, Bulk, begin_within_s
from server.error_replies import install_error_handlers
from server.guard import Guard
from server.json_body import read_json
from server.metrics import HttpMetrics, RequestRecorder
from server.multipart import read_parts
from server.names import check_name
from server.origin import origin_of
from server.records import Once, Precondition
from server.registry import Registry, request_hash
from server.split import Split
from server.telemetry.environment import trace_requests
from server.telemetry.logs import AccessLog
from server.telemetry.stats import stats_reply
from server.validation import invalid_request

if TYPE_CHECKING:  # installed only where traces are wanted
    from server.telemetry.tracing import Tracing

PREFIX = "/v1/adapters"
MAX_VERSION = 999_999_999
MAX_PAGE = 1000
MAX_SPLIT_VERSIONS = 16

Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Name = Annotated[str, Path(description="one or two segments, such as `sst2` or `acme/spam`")]
IfMatch = Annotated[str | None, Header(description="an ETag: refuse with 412 unless it is the adapter's")]
OnceKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="any text of the client's own: the same request under the same key is done once, for a day",
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PageQuery(_Strict):
    """Where a page begins and how long it may be."""

    limit: int = Field(100, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(None, max_length=129, description="`next` of the page before")


class PutQuery(_Strict):
    """activate=false stages the version: it answers as name@version only."""

    activate: bool = True


class DeleteQuery(_Strict):
    """Without a version, the name goes with all of them."""

    version: Version | None = None


class ActivateRequest(BaseModel):
    """The version that the bare name shall answer with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Version


class SplitRequest(BaseModel):
    """How the calls to the bare name are shared out: percentages that are 100 in all; and a version to compare with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weights: Annotated[
        dict[Annotated[str, Field(pattern="^[1-9][0-9]{0,8}$")], Annotated[int, Field(ge=1, le=100)]],
        Field(max_length=MAX_SPLIT_VERSIONS),
    ] = Field(default_factory=dict, description="version -> percent; none: all to the active version")
    shadow: Version | None = Field(None, description="its answers are compared and counted, and never returned")

    @model_validator(mode="after")
    def _be_whole(self) -> Self:
        if self.weights and sum(self.weights.values()) != 100:
            raise ValueError(f"the weights are {sum(self.weights.values())} in all, and should be 100")
        if not self.weights and self.shadow is None:
            raise ValueError("should have weights, a shadow, or both")
        return self


class _AdminRoute(APIRoute):
    """A route whose 405 names every method of the path: Starlette's names those of one route only."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            here = [r for r in scope["app"].routes if isinstance(r, APIRoute) and r.matches(scope)[0] != Match.NONE]
            allowed = {method for route in here for method in route.methods or ()}
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        await super().handle(scope, receive, send)


class _FullPaths:
    """Undo what mounting under a prefix does, so that the routes read the same under Ray and in a test.

    Mounted, the prefix is also the root_path, and the bare prefix arrives with a slash at its end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = PREFIX if scope["path"] == f"{PREFIX}/" else scope["path"]
            scope = {**scope, "root_path": "", "path": path}
        await self._app(scope, receive, send)


def make_admin_app(
    registry: Registry,
    gate: Gate | None = None,
    cors: Sequence[str] = (),
    *,
    metrics: HttpMetrics | None = None,
    access: AccessLog | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """The complete ASGI application over `registry`.

    gate     who may do what; without one, everybody everything
    cors     origins of web pages that may call
    metrics, access   where requests are counted and logged
    tracing  what makes spans, where traces are wanted
    """
    app = _app_of(registry)
    guard_routes(app, gate or Gate())
    install_error_handlers(app)
    app.add_middleware(Guard, max_body_bytes=MAX_BLOB_BYTES, exceptions={f"{PREFIX}/bulk": MAX_BULK_BYTES})
    allow_origins(app, cors)
    trace_requests(app, tracing)
    app.add_middleware(RequestRecorder, metrics=metrics or HttpMetrics(), access=access)
    app.add_middleware(_FullPaths)  # outermost: what is recorded is the route of the scope that it makes
    return app


def admin_openapi() -> dict[str, Any]:
    """The OpenAPI document of these routes, for the data plane's /openapi.json to merge."""
    app = _app_of(None)
    return with_access(app.openapi(), scopes_of(app))


def _app_of(registry: Registry | None) -> FastAPI:
    app = FastAPI(title="AdaKron admin", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.registry = registry
    app.router.route_class = _AdminRoute
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.get(PREFIX, summary="List adapters", responses=admin_documents.LIST)
    @needs("read")
    async def list_adapters(request: Request, query: Annotated[PageQuery, Query()]) -> JSONResponse:
        """A page of the adapters, by name.

        Statuses: 200; 422 limit or cursor; 503 the catalogue cannot be read.
        """
        after = "" if query.cursor is None else check_name(query.cursor, param="cursor")
        page, following = await _registry(request).page(query.limit, after, current_caller().prefix or "")
        return JSONResponse({"adapters": [summary(adapter) for adapter in page], "next": following})

    @app.get(PREFIX + "/{name:path}/versions/{version}", summary="Fetch an artefact", responses=admin_documents.FETCH)
    @needs("read")
    async def fetch_version(request: Request, name: Name, version: Version) -> Response:
        """Answer with the safetensors file of one version, the very bytes that were registered.

        Statuses: 200; 404; 422; 503 the file is damaged or cannot be read.
        """
        sha256, data = await _registry(request).fetch(_known_name(name), version)
        return Response(data, headers={"etag": f'"{sha256}"'}, media_type="application/octet-stream")

    @app.get(PREFIX + "/{name:path}/stats", summary="What an adapter served", responses=admin_documents.STATS)
    @needs("read")
    async def get_stats(request: Request, name: Name) -> JSONResponse:
        """Calls, rows, errors, latencies and labels of each version, and how far the labels are from the reference.

        Counted since the version became active, or since a replica started where that is later; summed over replicas.
        Statuses: 200; 404; 422 malformed name; 503.
        """
        return JSONResponse(stats_reply(await _registry(request).traffic(_known_name(name))))

    @app.get(PREFIX + "/{name:path}", summary="Show one adapter", responses=admin_documents.GET)
    @needs("read")
    async def get_adapter(request: Request, name: Name) -> JSONResponse:
        """One adapter with its versions, its configuration, and which replicas hold it.

        Statuses: 200 with ETag; 404; 422 malformed name; 503.
        """
        adapter = await _registry(request).get(_known_name(name))
        return JSONResponse(description(adapter), headers=_etag(adapter.entry.generation))

    @app.post(
        PREFIX + "/bulk",
        summary="Register many adapters",
        responses=admin_documents.BULK,
        openapi_extra=admin_documents.BULK_BODY,
    )
    @needs("admin")
    async def put_many(request: Request, query: Annotated[PutQuery, Query()]) -> JSONResponse:
        """Register up to 1000 safetensors files, each a part of multipart/form-data under the name of its adapter.

        Each is registered or refused by itself, as PUT would; what there is no time for is a 503 in its place, and
        sending it again is safe. X-Request-Timeout-Seconds gives a large upload more than 25 s; with
        X-Request-Disconnect-Disabled: ?1 it is read as it is needed, and not into memory at once.

        Statuses: 200; 202 not every replica serves them yet; 400 the body ended early, and what came before it may be
        registered; 413 over 4 GiB; 415; 422 a part without a name, or too many; 503.
        """
        content_type = request.headers.get("content-type")
        parts = read_parts(content_type, request.stream(), max_parts=MAX_BULK_ARTEFACTS)
        try:
            work = Bulk(
                _registry(request),
                activate=query.activate,
                origin=origin_of(request),
                begin_within_s=begin_within_s(request.headers.get("x-request-timeout-seconds")),
            )
            result = await work.register(parts)
        except ClientDisconnect as error:
            raise errors.MalformedBodyError("the body ended early") from error
        return JSONResponse(bulk_reply(result), 202 if result.lagging else 200)

    @app.put(
        PREFIX + "/{name:path}/split",
        summary="Share calls out among versions",
        responses=admin_documents.SPLIT,
        openapi_extra=_SPLIT_BODY,
    )
    @needs("admin")
    async def split_versions(
        request: Request, name: Name, if_match: IfMatch = None, key: OnceKey = None
    ) -> JSONResponse:
        """Send percentages of the calls to the bare name to versions of it, and compare with a shadow version.

        Calls with the same X-Route-Key stay on one version. Activating a version ends the split.
        Statuses: 200; 202 not every replica has followed yet; 400; 404; 409 without weights and nothing is active;
        412; 415; 422; 503.
        """
        _known_name(name)
        try:
            body = SplitRequest.model_validate(await read_json(request))
        except ValidationError as error:
            raise invalid_request(error.errors()) from error
        split = Split({int(version): weight for version, weight in body.weights.items()}, body.shadow)
        result = await _registry(request).split(
            name,
            split,
            if_match=_precondition(if_match),
            origin=origin_of(request),
            once=_once(key, "split", name, split.to_json(), if_match),
        )
        reply = split_reply(name, result)
        return JSONResponse(reply, 202 if result.lagging else 200, _etag(result.change.generation))

    @app.put(
        PREFIX + "/{name:path}",
        summary="Register or replace an adapter",
        responses=admin_documents.PUT,
        openapi_extra=admin_documents.FILE_BODY,
    )
    @needs("admin")
    async def put_adapter(
        request: Request,
        name: Name,
        query: Annotated[PutQuery, Query()],
        if_match: IfMatch = None,
        key: OnceKey = None,
    ) -> JSONResponse:
        """Register the safetensors file in the body, as it is, as a new version; and activate it.

        It is validated, run on a replica and its golden examples are compared before anything changes.
        Statuses: 201 a new version; 200 these bytes were a version already; 202 not every replica serves it yet, all
        will; 400 the body ended early; 409 made for another backbone; 412; 413 over 64 MiB; 415; 422 file refused;
        503; 507 no space.
        """
        check_own_name(name)
        _check_upload_headers(request)
        try:
            result = await _registry(request).put(
                name,
                request.stream(),
                activate=query.activate,
                if_match=_precondition(if_match),
                origin=origin_of(request),
                once=_once(key, "PUT", name, str(query.activate), if_match),
            )
        except ClientDisconnect as error:
            raise errors.MalformedBodyError("the body ended early") from error
        status = 202 if result.lagging else 201 if result.change.is_new else 200
        return JSONResponse(put_reply(name, result), status, _etag(result.change.generation))

    @app.delete(PREFIX + "/{name:path}", summary="Delete an adapter or one version", responses=admin_documents.DELETE)
    @needs("admin")
    async def delete_adapter(
        request: Request,
        name: Name,
        query: Annotated[DeleteQuery, Query()],
        if_match: IfMatch = None,
        key: OnceKey = None,
    ) -> JSONResponse:
        """Delete a name with all its versions, or one version that is not active. Requests under way still finish.

        Statuses: 200 with the bytes freed; 202 not every replica has followed yet; 404; 409 the version is active; 412;
        422; 503.
        """
        result = await _registry(request).delete(
            _known_name(name),
            query.version,
            if_match=_precondition(if_match),
            origin=origin_of(request),
            once=_once(key, "DELETE", name, str(query.version), if_match),
        )
        return JSONResponse(delete_reply(name, result), 202 if result.lagging else 200)

    @app.post(
        PREFIX + "/{name:path}/activate",
        summary="Promote or roll back",
        responses=admin_documents.ACTIVATE,
        openapi_extra=_ACTIVATE_BODY,
    )
    @needs("admin")
    async def activate_version(
        request: Request, name: Name, if_match: IfMatch = None, key: OnceKey = None
    ) -> JSONResponse:
        """Let the bare name answer with a kept version, at once for new requests; those under way finish on theirs.

        Statuses: 200; 202 not every replica has followed yet; 400; 404; 409 the Idempotency-Key came with another
        request; 412; 415; 422; 503.
        """
        _known_name(name)
        try:
            body = ActivateRequest.model_validate(await read_json(request))
        except ValidationError as error:
            raise invalid_request(error.errors()) from error
        result = await _registry(request).activate(
            name,
            body.version,
            if_match=_precondition(if_match),
            origin=origin_of(request),
            once=_once(key, "activate", name, str(body.version), if_match),
        )
        reply = activate_reply(name, result)
        return JSONResponse(reply, 202 if result.lagging else 200, _etag(result.change.generation))


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def _known_name(name: str) -> str:
    """The name of an adapter that exists for the caller, if it does at all. Raises InvalidRequestError (422)."""
    check_name(name, param="name")
    if not current_caller().sees(name):
        raise errors.unknown_adapter(name)
    return name


def _check_upload_headers(request: Request) -> None:
    content_type = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if content_type != "application/octet-stream":
        raise errors.UnsupportedMediaTypeError(
            f"content type {errors.quoted(content_type)} is not taken here",
            hint="send the safetensors file itself as application/octet-stream, for example curl -T file.safetensors",
        )


def _precondition(if_match: str | None) -> Precondition:
    """If-Match, parsed. A tag that is none of ours matches nothing, as RFC 9110 wants, and so does a weak one."""
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return "*"
    tags = [tag.strip().removeprefix('"').removesuffix('"') for tag in if_match.split(",")]
    return frozenset(int(tag) for tag in tags if tag.isascii() and tag.isdecimal() and len(tag) < 19)


def _once(key: str | None, *asked: str | None) -> Once | None:
    if key is None:
        return None
    owner = current_caller().key_id
    # What clients call their requests is their own: the same text of another API key is another request.
    own_key = key if owner is None else f"{owner}:{request_hash(key)}"
    return Once(own_key, request_hash(*(str(part) for part in asked)))


def _etag(generation: int) -> dict[str, str]:
    return {"etag": f'"{generation}"'}


_SPLIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": SplitRequest.model_json_schema(),
                "example": {"weights": {"3": 90, "4": 10}, "shadow": 5},
            }
        },
    }
}
_ACTIVATE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ActivateRequest.model_json_schema(), "example": {"version": 2}}},
    }
}
