"""Text Embeddings Inference's routes of a classifier, below the base URL of an adapter.

    POST /adapters/{adapter}/predict   {"inputs": "a"}                    -> [{"score": 0.99, "label": "joy"}, ..]
                                       {"inputs": ["a", "b"]}                one pair
                                       {"inputs": [["a"], ["b", "c"]]}    -> a list of those: a batch of singles, pairs
    GET  /adapters/{adapter}/info      one document for this dialect and Hugging Face's
    GET  /adapters/{adapter}/health    200, or 404 or 503

A list of strings is a pair here, and a batch one route above: every route reads its own body.
"""

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.access.gate import needs
from server.call_headers import adapter_headers
from server.dialects import examples
from server.dialects.backend import Answered, Backend, Text, classify, parsed
from server.dialects.huggingface import reference_of, scored
from server.errors import InvalidRequestError, NotReadyError
from server.json_body import read_json
from server.names import parse_reference
from server.schemas import MAX_ROWS

PREDICT = "/adapters/{adapter:path}/predict"
INFO = "/adapters/{adapter:path}/info"
HEALTH = "/adapters/{adapter:path}/health"


class PredictRequest(BaseModel):
    """One text, one pair, or a batch of lists of one or two texts."""

    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Any = Field(
        description="a string, a list of two strings (one pair), or a list of lists of one or two strings",
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
                    "minItems": 1,
                    "maxItems": MAX_ROWS,
                },
            ]
        },
    )
    truncate: bool | None = Field(None, description="false makes a text that is too long an error")
    truncation_direction: Annotated[
        Literal["right"] | None, BeforeValidator(lambda word: word.lower() if isinstance(word, str) else word)
    ] = Field(None, description="texts are cut at their end only")
    raw_scores: bool = Field(False, description="logits instead of probabilities")


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add the dialect to the application."""

    @app.post(
        PREDICT,
        summary="Classify, as Text Embeddings Inference",
        tags=["Text Embeddings Inference"],
        response_model=None,
        responses=examples.PREDICT,
        openapi_extra=examples.PREDICT_BODY,
    )
    @needs("classify")
    async def predict(request: Request, adapter: str) -> JSONResponse:
        """Run one text, one pair or a batch through the adapter that the path names. A batch fails whole.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        body = parsed(PredictRequest, await read_json(request))
        rows, is_batch = _rows(body.inputs)
        answered = await classify(
            backend,
            request,
            reference_of(request, adapter),
            rows,
            field="inputs",
            adapter_field="adapter",
            truncate=body.truncate is not False,
        )
        activation: Literal["none"] | None = "none" if body.raw_scores else None
        reply = [scored(result, None, activation) for result in answered.results]
        headers = answered.headers | _compute_headers(backend, rows, answered)
        return JSONResponse(reply if is_batch else reply[0], headers=headers)

    @app.get(
        INFO,
        summary="Describe an adapter",
        tags=["Text Embeddings Inference", "Hugging Face"],
        response_model=None,
        responses=examples.ADAPTER_INFO,
    )
    @needs("read")
    async def adapter_info(request: Request, adapter: str) -> JSONResponse:
        """Labels, limits and what runs, in the words of Text Embeddings Inference.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await backend.adapters.describe(parse_reference(reference_of(request, adapter), param="adapter"))
        config, info = described.config, backend.info()
        engine, limits = info["engine"], info["limits"]
        labels = {str(index): label for index, label in enumerate(config.label_names)}
        reply = {
            "model_id": described.name,
            "model_sha": described.sha256,
            "model_dtype": engine["dtype"],
            "served_model_name": f"{described.name}@{described.version}",
            "model_type": {
                "classifier": {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
            },
            "max_concurrent_requests": limits["queue_limit_rows"],
            "max_input_length": config.max_length,
            "max_batch_tokens": limits["batch_budget_tokens"],
            "max_batch_requests": None,
            "max_client_batch_size": MAX_ROWS,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": info["version"],
            "sha": None,
            "docker_label": None,
        }
        return JSONResponse(reply, headers=adapter_headers(described.identity))

    @app.get(
        HEALTH,
        summary="Can this adapter classify",
        tags=["Text Embeddings Inference", "Hugging Face"],
        response_model=None,
        responses=examples.ADAPTER_HEALTH,
    )
    @needs("read")
    async def adapter_health(request: Request, adapter: str) -> JSONResponse:
        """Answer 200 where the adapter is loaded and calls are taken.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await backend.adapters.describe(parse_reference(reference_of(request, adapter), param="adapter"))
        if not backend.service.ready():
            raise NotReadyError("calls are not taken now", hint="ask again after the time in Retry-After")
        return JSONResponse({"status": "ready"}, headers=adapter_headers(described.identity))


def _rows(inputs: object) -> tuple[list[Text], bool]:
    """The texts, and whether they came as a batch. Raises InvalidRequestError (422)."""
    if isinstance(inputs, str):
        return [Text(inputs)], False
    if isinstance(inputs, list) and inputs and all(isinstance(one, str) for one in inputs):
        return [_text(inputs, "inputs")], False
    if isinstance(inputs, list) and inputs and all(isinstance(one, list) for one in inputs):
        if len(inputs) > MAX_ROWS:
            raise InvalidRequestError(f"inputs: {len(inputs)} texts; a call has at most {MAX_ROWS}", param="inputs")
        return [_text(one, f"inputs.{index}") for index, one in enumerate(inputs)], True
    raise InvalidRequestError(
        "inputs: should be a string, a list of two strings, or a list of lists of one or two strings", param="inputs"
    )


def _text(texts: list[object], place: str) -> Text:
    if len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
        return Text(*texts)  # type: ignore[arg-type]  # just seen to be strings
    raise InvalidRequestError(
        f"{place}: should be one or two strings",
        param=place,
        hint='a list of strings is one pair; a batch is a list of lists: [["a"], ["b"]]',
    )


def _compute_headers(backend: Backend, rows: list[Text], answered: Answered) -> dict[str, str]:
    stages = answered.stages
    total_s = sum(stages)
    return {
        "x-compute-type": str(backend.info()["engine"]["device"]),
        "x-compute-characters": str(sum(len(row.text) + len(row.text_pair or "") for row in rows)),
        "x-compute-tokens": str(sum(result.n_tokens for result in answered.results)),
        "x-compute-time": _ms(total_s),
        "x-total-time": _ms(total_s),
        "x-tokenization-time": _ms(stages.tokenize_s),
        "x-queue-time": _ms(stages.queue_s),
        "x-inference-time": _ms(stages.forward_s),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
