"""vLLM's shape of classification, and OpenAI's of the listing: what gateways and the `openai` client speak.

    POST /classify  /v1/classify      {"model": "acme/spam", "input": ["a", "b"]}
    GET  /v1/models[/{model}]         adapters, each with the backbone as its parent
    POST /v1/load_lora_adapter        {"lora_name": "acme/spam"}: a registered name answers again
    POST /v1/unload_lora_adapter      it answers no more; nothing is lost

/v1/classify is also the native route: keys tell the two apart. Loading takes no path: `lora_path` may repeat the name
or pin a version of it, and nothing else. Changes are forwarded to the admin plane, so they hold for all replicas.
"""

import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from adakron import Result
from adakron.activations import Activation
from server.access.gate import needs
from server.call_headers import adapter_headers
from server.dialects import vllm_examples
from server.dialects.backend import MAX_LISTED, Backend, Text, agreed, classify, parsed
from server.error_replies import request_id_of
from server.errors import AdapterNotFoundError, InvalidRequestError, quoted
from server.json_body import read_json
from server.names import Reference, check_name, parse_reference
from server.origin import origin_of
from server.records import Entry
from server.schemas import MAX_ROWS

OWNER = "adakron"
_NATIVE_KEYS = frozenset({"adapter", "adapters", "inputs", "items"})
_OWN_KEYS = frozenset({"model", "input"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class VllmClassifyRequest(_Strict):
    """Texts for one adapter. What would change how they are read is taken with its usual value only."""

    model: Annotated[str, Field(min_length=1)] | None = Field(None, description="the adapter; or in X-Adapter-Id")
    input: Any = Field(
        description="one text or a list of texts",
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ROWS},
            ]
        },
    )
    truncate_prompt_tokens: Literal[-1] | None = Field(
        None, description="-1 cuts a text at the adapter's max_length; null makes a longer one an error"
    )
    truncation_side: Literal["right"] | None = None
    add_special_tokens: Literal[True] = True
    use_activation: bool | None = Field(None, description="false gives logits")
    priority: Literal[0] = 0
    user: str | None = None
    request_id: str | None = None


class VllmLoadRequest(_Strict):
    """lora_path: the name again, or pinned as in `acme/spam@3`; no path and no address."""

    lora_name: str
    lora_path: str | None = None
    load_inplace: bool = Field(False, description="another version may answer in place of the one that does")


class VllmUnloadRequest(_Strict):
    """lora_int_id is a number of vLLM's own, and means nothing here."""

    lora_name: str
    lora_int_id: int | None = None


class ModelsQuery(BaseModel):
    """Where a page begins and how long it may be; without a limit the whole list, up to 10,000."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(MAX_LISTED, ge=1, le=MAX_LISTED)
    after: str | None = Field(None, max_length=256, description="the last id of the page before")


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add the dialect to the application; the shape on /v1/classify is called by that route."""
    _add_models(app, backend)
    _add_loading(app, backend)

    @app.post(
        "/classify",
        summary="Classify, as vLLM",
        tags=["OpenAI and vLLM"],
        response_model=None,
        responses=vllm_examples.CLASSIFY,
        openapi_extra=vllm_examples.CLASSIFY_BODY,
    )
    @needs("classify")
    async def vllm_classify(request: Request) -> JSONResponse:
        """Run texts through one adapter. A batch fails whole. `name@3` pins a version.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        return await answer(backend, request, await read_json(request))


def is_for_vllm(value: object) -> bool:
    """Whether a body on the shared route has this shape. Raises InvalidRequestError (422) where it has both."""
    if not isinstance(value, dict) or not _OWN_KEYS & value.keys():
        return False
    if _NATIVE_KEYS & value.keys():
        raise InvalidRequestError(
            "the body has keys of two forms", hint="send adapter and inputs, or model and input, and not both"
        )
    return True


async def answer(backend: Backend, request: Request, value: object) -> JSONResponse:
    """The reply to a body of this shape. Raises as `server.dialects.backend.classify` does."""
    if isinstance(value, dict) and "input" not in value and "inputs" in value:
        raise InvalidRequestError("inputs: is input here", param="input", hint="send model and input")
    body = parsed(VllmClassifyRequest, value)
    model = agreed(("model", body.model), ("X-Adapter-Id", request.headers.get("x-adapter-id")))
    if model is None:
        raise InvalidRequestError("model: name the adapter", param="model")
    _refuse_backbone(backend, model)
    rows = _rows(body.input)
    answered = await classify(
        backend,
        request,
        model,
        rows,
        field="input",
        adapter_field="model",
        truncate=body.truncate_prompt_tokens is not None,
    )
    activation: Activation | None = "none" if body.use_activation is False else None
    tokens = sum(result.n_tokens for result in answered.results)
    reply = {
        "id": f"classify-{request_id_of(request.scope)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [_row(index, result, activation) for index, result in enumerate(answered.results)],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }
    return JSONResponse(reply, headers=answered.headers)


def _add_models(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/v1/models",
        summary="List models, as OpenAI",
        tags=["OpenAI and vLLM"],
        response_model=None,
        responses=vllm_examples.MODELS,
    )
    @needs("read")
    async def list_models(query: Annotated[ModelsQuery, Query()]) -> JSONResponse:
        """The backbone, then every adapter that answers, by name, with the backbone as its parent.

        Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 422, 429, 431.
        """
        base = _base_card(backend)
        table = backend.adapters.table.adapters
        names = sorted(name for name, entry in table.items() if entry.answers)
        if query.after is not None and query.after != base["id"]:
            names = [name for name in names if name > query.after]
        first = [] if query.after is not None else [base]
        page = names[: query.limit - len(first)]
        cards = [*first, *(_card(name, table[name], str(base["id"])) for name in page)]
        return JSONResponse({"object": "list", "data": cards, "has_more": len(page) < len(names)})

    @app.get(
        "/v1/models/{model:path}",
        summary="Describe one model, as OpenAI",
        tags=["OpenAI and vLLM"],
        response_model=None,
        responses=vllm_examples.MODEL,
    )
    @needs("read")
    async def get_model(model: str) -> JSONResponse:
        """The card of the backbone or of an adapter.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        base = _base_card(backend)
        if model == base["id"]:
            return JSONResponse(base)
        described = await backend.adapters.describe(parse_reference(model, param="model"))
        entry = backend.adapters.table.adapters.get(described.name)
        if entry is None:  # it went meanwhile
            raise AdapterNotFoundError(f"no adapter {described.name!r}", param="model")
        card = _card(described.name, entry, str(base["id"]))
        pinned = {"root": f"{described.name}@{described.version}", "max_model_len": described.config.max_length}
        return JSONResponse(card | pinned, headers=adapter_headers(described.identity))


def _add_loading(app: FastAPI, backend: Backend) -> None:
    @app.post(
        "/v1/load_lora_adapter",
        summary="Let a registered adapter answer, as vLLM",
        tags=["OpenAI and vLLM"],
        response_class=PlainTextResponse,
        response_model=None,
        responses=vllm_examples.LOAD,
        openapi_extra=vllm_examples.LOAD_BODY,
    )
    @needs("admin")
    async def load_lora_adapter(request: Request) -> PlainTextResponse:
        """The version that `lora_path` pins, or the one that answered last. Files are registered by PUT.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 507.
        """
        body = parsed(VllmLoadRequest, await read_json(request))
        name = check_name(body.lora_name, param="lora_name")
        reference = _registered(name, body.lora_path)
        await backend.admin.load(name, reference.version, may_replace=body.load_inplace, origin=origin_of(request))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post(
        "/v1/unload_lora_adapter",
        summary="Let a name answer no more, as vLLM",
        tags=["OpenAI and vLLM"],
        response_class=PlainTextResponse,
        response_model=None,
        responses=vllm_examples.UNLOAD,
        openapi_extra=vllm_examples.UNLOAD_BODY,
    )
    @needs("admin")
    async def unload_lora_adapter(request: Request) -> PlainTextResponse:
        """Deactivate: versions are kept and answer where they are named, and load brings the name back.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 507.
        """
        body = parsed(VllmUnloadRequest, await read_json(request))
        name = check_name(body.lora_name, param="lora_name")
        await backend.admin.unload(name, origin=origin_of(request))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _rows(value: object) -> list[Text]:
    if isinstance(value, str):
        return [Text(value)]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InvalidRequestError(
            "input: should be a text or a list of texts", param="input", hint="token ids are not taken: send the text"
        )
    if len(value) > MAX_ROWS:
        raise InvalidRequestError(f"input: {len(value)} texts; a call has at most {MAX_ROWS}", param="input")
    return [Text(text) for text in value]


def _row(index: int, result: Result, activation: Activation | None) -> dict[str, object]:
    probs = [float(score) for score in result.activated(activation)]
    label = result.label_names[0] if result.problem_type == "regression" else result.label
    return {"index": index, "label": label, "probs": probs, "num_classes": len(probs)}


def _refuse_backbone(backend: Backend, model: str) -> None:
    if model == backend.info()["engine"]["backbone"]:
        raise AdapterNotFoundError(
            "no adapter is named: the backbone alone classifies nothing",
            param="model",
            hint="GET /v1/models lists the adapters",
        )


def _registered(name: str, lora_path: str | None) -> Reference:
    """What is to be loaded. Raises InvalidRequestError (422) for anything but a reference to this very name."""
    if not lora_path or lora_path == name:
        return Reference(name)
    if lora_path.startswith(f"{name}@"):
        reference = parse_reference(lora_path, param="lora_path")
        if reference.version is not None:
            return reference
    raise InvalidRequestError(
        f"lora_path: {quoted(lora_path)} is not a version of {name!r}; no path is read here",
        param="lora_path",
        hint=f"register files with PUT /v1/adapters/{name}; then leave lora_path out, or pin a version: {name}@2",
    )


def _base_card(backend: Backend) -> dict[str, object]:
    engine = backend.info()["engine"]
    name = engine["backbone"]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "root": name,
        "parent": None,
        "max_model_len": engine["max_length"],
    }


def _card(name: str, entry: Entry, backbone: str) -> dict[str, object]:
    row = entry.versions[entry.shown]
    return {
        "id": name,
        "object": "model",
        "created": int(datetime.fromisoformat(row.created_at).timestamp()),
        "owned_by": OWNER,
        "root": f"{name}@{entry.shown}",
        "parent": backbone,
    }
