"""The model repository of the Open Inference Protocol V2: what is registered, and loading and unloading it.

    POST /v2/repository/index                     [{"name", "version", "state", "reason"}]
    POST /v2/repository/models/{model}/load       registered before: let it answer again; with a file: register it
    POST /v2/repository/models/{model}/unload     let the bare name answer no more; nothing is lost

Changes are forwarded to the admin plane. A file comes in the body; no path is ever opened.
"""

import asyncio
import base64
import binascii
from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.access.gate import needs
from server.admin_plane import Loaded
from server.dialects import v2_examples
from server.dialects.backend import MAX_LISTED, Backend, parsed
from server.errors import InvalidRequestError, MalformedBodyError, quoted
from server.json_body import check_json_content_type, decode_json
from server.names import check_name, from_segment, to_segment
from server.origin import origin_of
from server.records import Entry

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/{model}/load"
UNLOAD = "/v2/repository/models/{model}/unload"

# A file of 12 MiB in base64 and JSON: this body is held in memory, where PUT streams. Larger ones are for PUT.
MAX_LOAD_BYTES = 16 * 2**20
ARTEFACT = "adapter_model.safetensors"
_FILE = "file:"
# What our own configuration answers with, and so may come back; of these the version policy alone says anything.
_CONFIG_KEYS = frozenset({"name", "platform", "backend", "max_batch_size", "input", "output", "version_policy"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class IndexRequest(_Strict):
    """ready: only what answers."""

    ready: bool = False


class LoadRequest(_Strict):
    """config: JSON in a string, of which version_policy counts. One `file:` holds an artefact in base64."""

    parameters: dict[str, str] = Field(default_factory=dict)


class UnloadParameters(_Strict):
    """unload_dependents: adapters have none."""

    unload_dependents: bool = False


class UnloadRequest(_Strict):
    """Nothing needs to be said."""

    parameters: UnloadParameters = Field(default_factory=UnloadParameters)


class _Versions(_Strict):
    versions: Annotated[list[Annotated[int, Field(ge=1, le=999_999_999)]], Field(min_length=1, max_length=1)]


class _Latest(_Strict):
    num_versions: Annotated[int, Field(ge=1, le=1)] = 1


class _VersionPolicy(_Strict):
    specific: _Versions | None = None
    latest: _Latest | None = None


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add these routes to the application."""

    @app.post(
        INDEX,
        summary="What is registered",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.INDEX,
        openapi_extra=v2_examples.INDEX_BODY,
    )
    @needs("read")
    async def index(request: Request) -> JSONResponse:
        """Every kept version of every name, at most 10,000 of them; X-Total-Count says how many there are.

        Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 422, 429, 431.
        """
        body = parsed(IndexRequest, await _json_or_nothing(request))
        rows = [
            (name, number, *_state(entry, backend.adapters.broken.get(row.sha256)))
            for name, entry in sorted(backend.adapters.table.adapters.items())
            for number, row in entry.versions.items()
        ]
        chosen = [row for row in rows if row[2] == "READY"] if body.ready else rows
        reply = [
            {"name": to_segment(name), "version": str(number), "state": state, "reason": reason}
            for name, number, state, reason in chosen[:MAX_LISTED]
        ]
        return JSONResponse(reply, headers={"x-total-count": str(len(chosen))})

    @app.post(
        LOAD,
        summary="Let a registered adapter answer, or register one",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.LOAD,
        openapi_extra=v2_examples.LOAD_BODY,
    )
    @needs("admin")
    async def load(request: Request, model: str) -> JSONResponse:
        """Without a file: the version that `config` names by its version_policy, or the one that answered last.

        With a file, in base64 under `file:1/adapter_model.safetensors`: what PUT /v1/adapters/{name} does with it.

        Statuses: 200, 400, 401, 403, 404, 408, 409, 413, 414, 415, 422, 429, 431, 503, 507.
        """
        name = check_name(from_segment(model), param="model")
        body = parsed(LoadRequest, await _json_or_nothing(request))
        parameters = dict(body.parameters)
        version = _version(parameters.pop("config", None))
        origin = origin_of(request)
        if not parameters:
            return _reply(await backend.admin.load(name, version, may_replace=True, origin=origin), "READY")
        if version is not None:
            raise InvalidRequestError("parameters: has both a file and a version", param="parameters")
        artefact = await asyncio.to_thread(_artefact, parameters)
        return _reply(await backend.admin.upload(name, artefact, origin=origin), "READY")

    @app.post(
        UNLOAD,
        summary="Let a name answer no more",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.UNLOAD,
        openapi_extra=v2_examples.UNLOAD_BODY,
    )
    @needs("admin")
    async def unload(request: Request, model: str) -> JSONResponse:
        """Deactivate: versions are kept and answer where they are named, and load brings the name back.

        To free what an adapter holds there is DELETE /v1/adapters/{name}.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 507.
        """
        name = check_name(from_segment(model), param="model")
        parsed(UnloadRequest, await _json_or_nothing(request))
        return _reply(await backend.admin.unload(name, origin=origin_of(request)), "UNAVAILABLE")


async def _json_or_nothing(request: Request) -> object:
    """The body, where there is none an empty object."""
    body = await request.body()
    if not body:
        return {}
    check_json_content_type(request.headers.get("content-type"))
    # A file may be in it: megabytes of JSON are no work for the event loop.
    return await asyncio.to_thread(decode_json, body)


def _state(entry: Entry, fault: str | None) -> tuple[str, str]:
    if fault is not None:
        return "UNAVAILABLE", fault
    if not entry.answers:
        return "UNAVAILABLE", "no version is active; this one answers where it is named"
    return "READY", ""


def _version(config: str | None) -> int | None:
    """The version that a model configuration asks for. Raises InvalidRequestError (422)."""
    if config is None:
        return None
    try:
        members = decode_json(config.encode("utf-8", "replace"))
    except MalformedBodyError as error:
        raise InvalidRequestError("parameters.config: should be JSON", param="parameters.config") from error
    if not isinstance(members, dict) or (unknown := sorted(members.keys() - _CONFIG_KEYS)):
        what = f"{quoted(unknown[0])} cannot be set" if isinstance(members, dict) else "should be a JSON object"
        raise InvalidRequestError(
            f"parameters.config: {what}",
            param="parameters.config",
            hint='the version can: {"version_policy": {"specific": {"versions": [3]}}}',
        )
    policy = parsed(_VersionPolicy, members.get("version_policy", {}))
    return policy.specific.versions[0] if policy.specific is not None else None


def _artefact(parameters: dict[str, str]) -> bytes:
    """The one file. Raises InvalidRequestError (422)."""
    (name, text), *more = parameters.items()
    if more or not name.startswith(_FILE) or name.rpartition("/")[2].removeprefix(_FILE) != ARTEFACT:
        raise InvalidRequestError(
            f"parameters: {quoted(name)} is not taken here",
            param="parameters",
            hint=f"give one file, {_FILE}1/{ARTEFACT}, in base64",
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError("parameters: the file is not base64", param="parameters") from error


def _reply(loaded: Loaded, state: str) -> JSONResponse:
    name = to_segment(loaded.name)
    return JSONResponse({"name": name, "version": str(loaded.version), "state": state, "sha256": loaded.sha256})
