"""Hugging Face Inference: one base URL an adapter, and the clients' own `text_classification` on it.

    POST /adapters/{adapter}    {"inputs": "free money", "parameters": {"top_k": 1}}
                             -> [[{"label": "spam", "score": 0.9}, ..]]

A client is given the base URL as its model and posts to it as it is. The reply is nested for one text too: Python's
client takes its first element, and JavaScript's refuses anything else. What else lies below the base is in
`server.dialects.tei`.
"""

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from adakron import Result
from adakron.activations import Activation
from server.access.gate import needs
from server.dialects import examples
from server.dialects.backend import Backend, Text, agreed, classify, parsed
from server.json_body import read_json
from server.schemas import MAX_ROWS, MAX_TOP_K, Input, TextInput

BASE = "/adapters/{adapter:path}"


def _kind_of_inputs(value: object) -> str | None:
    return "<one>" if isinstance(value, str) else "<pair>" if isinstance(value, dict) else "<list>"


Inputs = Annotated[
    Annotated[str, Tag("<one>")]
    | Annotated[TextInput, Tag("<pair>")]
    | Annotated[list[Input], Field(min_length=1, max_length=MAX_ROWS), Tag("<list>")],
    Discriminator(_kind_of_inputs),
]


class HuggingFaceParameters(BaseModel):
    """What the clients send beside the text. adapter_id repeats the path, for gateways that fill it in."""

    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(None, description="null for all labels")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        None, description="null for what the adapter was trained with; none for logits, before its temperature"
    )
    truncation: bool = Field(True, description="false makes a text that is too long an error")
    adapter_id: str | None = None


class HuggingFaceRequest(BaseModel):
    """Texts for one adapter: a string, a pair, or a list of those."""

    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Inputs
    parameters: HuggingFaceParameters = Field(default_factory=HuggingFaceParameters)
    options: dict[str, Any] | None = Field(None, description="use_cache, wait_for_model: there is nothing to decide")


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add the dialect to the application, behind every other route below /adapters."""

    @app.post(
        BASE,
        summary="Classify, as Hugging Face Inference",
        tags=["Hugging Face"],
        response_model=None,
        responses=examples.HUGGING_FACE,
        openapi_extra=examples.HUGGING_FACE_BODY,
    )
    @needs("classify")
    async def hugging_face(request: Request, adapter: str) -> JSONResponse:
        """Run texts through the adapter that the path names; `name@3` pins a version. A batch fails whole.

        Texts that were cut show in the header X-HF-Warning. The deadline is the header X-Timeout-S.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        if adapter.rpartition("/")[2] in ("health", "info"):
            raise HTTPException(405, headers={"Allow": "GET"})
        body = parsed(HuggingFaceRequest, await read_json(request))
        parameters = body.parameters
        reference = reference_of(request, adapter, parameters.adapter_id)
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        rows = [Text(one) if isinstance(one, str) else Text(one.text, one.text_pair) for one in inputs]
        answered = await classify(
            backend, request, reference, rows, field="inputs", adapter_field="adapter", truncate=parameters.truncation
        )
        reply = [scored(result, parameters.top_k, parameters.function_to_apply) for result in answered.results]
        return JSONResponse(reply, headers=answered.headers | _warning(answered.results))


def reference_of(request: Request, path: str, adapter_id: str | None = None) -> str:
    """The adapter of a base URL, which may end in a slash. Raises ConflictingAdapterError where others differ."""
    named = path.removesuffix("/")
    header = request.headers.get("x-adapter-id")
    return agreed(("the path", named), ("parameters.adapter_id", adapter_id), ("X-Adapter-Id", header)) or named


def scored(result: Result, top_k: int | None, activation: Activation | None) -> list[dict[str, object]]:
    """One row: labels with their scores, best first; of a regression its one label with the value."""
    return [{"label": label, "score": score} for label, score in result.top_activated(top_k, activation)]


def _warning(results: list[Result]) -> dict[str, str]:
    """X-HF-Warning, which Python's client logs once."""
    cut = sum(result.truncated for result in results)
    if not cut:
        return {}
    return {"x-hf-warning": f"truncated; {cut} of {len(results)} texts were cut at the adapter's max_length"}
