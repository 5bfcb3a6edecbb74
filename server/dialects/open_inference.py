"""Open Inference Protocol V2, as Triton and KServe speak it: health, metadata, infer, statistics.

    GET  /v2   /v2/health/live   /v2/health/ready   /v2/models   /v2/models/stats
    GET  /v2/models/{model}[/versions/{version}]    and below it ready, stats; /v2/models/{model}/config
    POST /v2/models/{model}[/versions/{version}]/infer

A model is an adapter; in these paths `acme/spam` is `acme--spam`, as the clients do not quote a slash. Outputs are
`scores` [N, L] in the order of the labels and `label` [N]. The repository routes are in `server.dialects.repository`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adakron import Result
from server.access.gate import needs
from server.call_headers import adapter_headers
from server.compression import unpacked
from server.dialects import v2_examples
from server.dialects.backend import MAX_LISTED, Answered, Backend, agreed, classify
from server.dialects.tensors import InferParameters, InferRequest, Tensor, WantedOutput, read_infer, write_infer
from server.errors import InvalidRequestError, MalformedBodyError, NotReadyError, UnsupportedMediaTypeError, quoted
from server.json_body import check_json_content_type
from server.names import from_segment, parse_reference, to_segment
from server.replica import Described
from server.schemas import MAX_BODY_BYTES, MAX_ROWS
from server.tally import Count

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics")
MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
_SCORES, _LABEL, _LABELS = "scores", "label", "labels"


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add the dialect to the application."""
    _add_health(app, backend)
    _add_statistics(app, backend)  # before the models: "stats" is no model
    _add_metadata(app, backend)
    _add_infer(app, backend)


def model_reference(model: str, version: str | None = None) -> str:
    """The adapter that a path means: `acme--spam`, `acme--spam@3`, or with a version of its own."""
    reference = from_segment(model)
    if version is None:
        return reference
    name, at, pinned = reference.partition("@")
    agreed(("the model in the path", pinned if at else None), ("the version in the path", version))
    return f"{name}@{version}"


async def describe(backend: Backend, model: str, version: str | None = None) -> Described:
    """Raises AdapterNotFoundError, VersionNotFoundError (404), NotReadyError (503)."""
    return await backend.adapters.describe(parse_reference(model_reference(model, version), param="model"))


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/v2/health/live",
        summary="Is the process alive",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.LIVE,
    )
    async def live() -> JSONResponse:
        """Answer as long as the event loop turns. Statuses: 200, 400, 408, 413, 414, 415, 431."""
        return JSONResponse({"live": True, "ready": backend.service.ready()})

    @app.get(
        "/v2/health/ready",
        summary="Can it classify",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.READY,
    )
    async def ready() -> JSONResponse:
        """Answer 200 where rows really get an answer, as GET /readyz does.

        Statuses: 200, 400, 408, 413, 414, 415, 431, 503.
        """
        if not (backend.service.ready() and await backend.is_ready()):
            raise NotReadyError("backbone or adapters do not answer", hint="ask again after the time in Retry-After")
        return JSONResponse({"live": True, "ready": True})


def _add_metadata(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/v2",
        summary="Describe the server",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.SERVER,
    )
    @needs("read")
    async def server_metadata() -> JSONResponse:
        """Name, version and extensions. Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 429, 431."""
        return JSONResponse({"name": "adakron", "version": backend.info()["version"], "extensions": EXTENSIONS})

    @app.get(
        "/v2/models",
        summary="List models",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.MODELS,
    )
    @needs("read")
    async def list_models() -> JSONResponse:
        """Names that answer without a version, at most 10,000.

        Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 429, 431.
        """
        names = sorted(name for name, entry in backend.adapters.table.adapters.items() if entry.answers)
        return JSONResponse({"models": [to_segment(name) for name in names[:MAX_LISTED]]})

    @app.get(
        f"{VERSION}/ready",
        summary="Can this version of a model classify",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.MODEL_READY,
    )
    @app.get(
        f"{MODEL}/ready",
        summary="Can this model classify",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.MODEL_READY,
    )
    @needs("read")
    async def model_ready(model: str, version: str | None = None) -> JSONResponse:
        """Answer 200 where the adapter is loaded and calls are taken.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await describe(backend, model, version)
        if not backend.service.ready():
            raise NotReadyError("calls are not taken now", hint="ask again after the time in Retry-After")
        return JSONResponse(
            {"name": to_segment(described.name), "ready": True}, headers=adapter_headers(described.identity)
        )

    @app.get(
        f"{MODEL}/config",
        summary="A model's configuration, as Triton has it",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.CONFIG,
    )
    @needs("read")
    async def model_config(model: str) -> JSONResponse:
        """What load generators read: the largest batch, tensors, versions.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await describe(backend, model)
        reply = {
            "name": to_segment(described.name),
            "platform": "adakron",
            "backend": "adakron",
            "version_policy": {"specific": {"versions": [described.version]}},
            "max_batch_size": MAX_ROWS,
            "input": [{"name": name, "data_type": "TYPE_STRING", "dims": [1]} for name in _input_names(described)],
            "output": [
                {"name": _SCORES, "data_type": "TYPE_FP32", "dims": [described.config.num_labels]},
                {"name": _LABEL, "data_type": "TYPE_STRING", "dims": [1]},
            ],
        }
        return JSONResponse(reply, headers=adapter_headers(described.identity))

    @app.get(
        VERSION,
        summary="Describe a version of a model",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.MODEL,
    )
    @app.get(
        MODEL,
        summary="Describe a model",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.MODEL,
    )
    @needs("read")
    async def model_metadata(model: str, version: str | None = None) -> JSONResponse:
        """Versions that are kept, and tensors.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await describe(backend, model, version)
        reply = {
            "name": to_segment(described.name),
            "versions": [str(number) for number in described.kept],
            "platform": "adakron",
            "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _input_names(described)],
            "outputs": [
                {"name": _SCORES, "datatype": "FP32", "shape": [-1, described.config.num_labels]},
                {"name": _LABEL, "datatype": "BYTES", "shape": [-1]},
            ],
        }
        return JSONResponse(reply, headers=adapter_headers(described.identity))


def _add_infer(app: FastAPI, backend: Backend) -> None:
    @app.post(
        f"{VERSION}/infer",
        summary="Classify with one version of a model",
        tags=["Open Inference Protocol"],
        response_class=JSONResponse,
        response_model=None,
        responses=v2_examples.INFER,
        openapi_extra=v2_examples.INFER_BODY,
    )
    @app.post(
        f"{MODEL}/infer",
        summary="Classify, as the Open Inference Protocol",
        tags=["Open Inference Protocol"],
        response_class=JSONResponse,
        response_model=None,
        responses=v2_examples.INFER,
        openapi_extra=v2_examples.INFER_BODY,
    )
    @needs("classify")
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Run texts through one adapter. A batch fails whole.

        The body is JSON, or JSON and then tensors where Inference-Header-Content-Length says where it ends; it may be
        compressed. The deadline is X-Timeout-S or the parameter `timeout`, whichever is less.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503, 504.
        """
        _check_content_type(request)
        body = unpacked(await request.body(), request.headers.get("content-encoding"), MAX_BODY_BYTES)
        asked, rows = read_infer(body, _header_bytes(request))
        parameters = asked.parameters
        reference = _infer_reference(request, model, version, asked)
        within_s = parameters.timeout / 1e6 if parameters.timeout else None
        answered = await classify(
            backend,
            request,
            reference,
            rows,
            field="inputs",
            adapter_field="model",
            truncate=parameters.truncate,
            within_s=within_s,
        )
        head: dict[str, object] = {
            "model_name": to_segment(answered.adapter["adapter"]),
            "model_version": str(answered.adapter["version"]),
        }
        if asked.id is not None:
            head["id"] = asked.id
        content, header_bytes = write_infer(head, _outputs(asked, answered))
        if header_bytes is None:
            return Response(content, headers=answered.headers, media_type="application/json")
        length = {"inference-header-content-length": str(header_bytes)}
        return Response(content, headers=answered.headers | length, media_type="application/octet-stream")


def _add_statistics(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/v2/models/stats",
        summary="Statistics of all models",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.ALL_STATISTICS,
    )
    @needs("read")
    async def all_statistics() -> JSONResponse:
        """Of the adapters that were called since the replicas started, at most 10,000 of a replica.

        Statuses: 200, 400, 401, 403, 408, 413, 414, 415, 429, 431.
        """
        counts = await backend.tallies(None)
        table = backend.adapters.table.adapters
        found = [
            _statistics(name, number, counts[row.sha256])
            for name, entry in sorted(table.items())
            for number, row in entry.versions.items()
            if row.sha256 in counts
        ]
        return JSONResponse({"model_stats": found[:MAX_LISTED]})

    @app.get(
        f"{VERSION}/stats",
        summary="Statistics of one version of a model",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.STATISTICS,
    )
    @app.get(
        f"{MODEL}/stats",
        summary="Statistics of a model",
        tags=["Open Inference Protocol"],
        response_model=None,
        responses=v2_examples.STATISTICS,
    )
    @needs("read")
    async def statistics(model: str, version: str | None = None) -> JSONResponse:
        """Calls, rows and times over all replicas since they started. Versions with the same bytes share their counts.

        Statuses: 200, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 503.
        """
        described = await describe(backend, model, version)
        entry = backend.adapters.table.adapters.get(described.name)
        shown = {described.version: described.sha256}
        if version is None and entry is not None:
            shown = {number: row.sha256 for number, row in entry.versions.items()}
        counts = await backend.tallies(list(shown.values()))
        found = [_statistics(described.name, number, counts.get(sha256, Count())) for number, sha256 in shown.items()]
        return JSONResponse({"model_stats": found}, headers=adapter_headers(described.identity))


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type")
    if content_type == "application/octet-stream":
        return
    try:
        check_json_content_type(content_type)
    except UnsupportedMediaTypeError as error:
        error.hint = "send application/json, or application/octet-stream with Inference-Header-Content-Length"
        raise


def _header_bytes(request: Request) -> int | None:
    """The length of the JSON. Raises MalformedBodyError (400)."""
    header = request.headers.get("inference-header-content-length")
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) <= 9):
        raise MalformedBodyError(f"Inference-Header-Content-Length is {quoted(header)}, not a number of bytes")
    return int(header)


def _infer_reference(request: Request, model: str, version: str | None, asked: InferRequest) -> str:
    """The adapter that everything which names one agrees on. Raises ConflictingAdapterError (400)."""
    reference = model_reference(model, version)
    name, _, pinned = reference.partition("@")
    header = request.headers.get("x-adapter-id")
    agreed(
        ("the path", name),
        ("model_name", None if asked.model_name is None else from_segment(asked.model_name).partition("@")[0]),
        (
            "parameters.adapter_id",
            None if asked.parameters.adapter_id is None else from_segment(asked.parameters.adapter_id),
        ),
        ("X-Adapter-Id", header),
    )
    wanted = asked.parameters.adapter_version
    version = agreed(
        ("the path", pinned or None),
        ("model_version", asked.model_version or None),
        ("parameters.adapter_version", None if wanted is None else str(wanted)),
    )
    return name if version is None else f"{name}@{version}"


def _outputs(asked: InferRequest, answered: Answered) -> list[tuple[Tensor, bool]]:
    """The tensors that are wanted, or all. Raises InvalidRequestError (422) for a name that there is not."""
    parameters = asked.parameters
    tensors = _tensors(answered.results, parameters)
    wanted = asked.outputs or [WantedOutput(name=name) for name in tensors]
    found = []
    for index, output in enumerate(wanted):
        if output.name not in tensors:
            raise InvalidRequestError(
                f"outputs.{index}.name: there is no output {quoted(output.name)}",
                param=f"outputs.{index}.name",
                hint=f"there are {', '.join(tensors)}",
            )
        k = output.parameters.classification
        if k is not None and output.name != _SCORES:
            raise InvalidRequestError(
                f"outputs.{index}: classification is of {_SCORES} only", param=f"outputs.{index}.parameters"
            )
        is_binary = output.parameters.binary_data
        tensor = tensors[output.name] if k is None else _classification(answered.results, k, parameters)
        found.append((tensor, parameters.binary_data_output if is_binary is None else is_binary))
    return found


def _tensors(results: Sequence[Result], parameters: InferParameters) -> dict[str, Tensor]:
    rows, activation, k = len(results), parameters.function_to_apply, parameters.top_k
    best = [result.top_activated(1, activation)[0][0] for result in results]
    label = Tensor(_LABEL, "BYTES", (rows,), best)
    if k is None:
        scores = [float(score) for result in results for score in result.activated(activation)]
        return {_SCORES: Tensor(_SCORES, "FP32", (rows, len(scores) // rows), scores), _LABEL: label}
    top = [pair for result in results for pair in result.top_activated(k, activation)]
    shape = (rows, len(top) // rows)
    return {
        _SCORES: Tensor(_SCORES, "FP32", shape, [score for _, score in top]),
        _LABELS: Tensor(_LABELS, "BYTES", shape, [name for name, _ in top]),
        _LABEL: label,
    }


def _classification(results: Sequence[Result], k: int, parameters: InferParameters) -> Tensor:
    """The classification extension: "value:index:label". A label may hold ":", as it comes last."""
    strings = []
    for result in results:
        index = {name: number for number, name in enumerate(result.label_names)}
        top = result.top_activated(k, parameters.function_to_apply)
        strings += [f"{score:f}:{index[name]}:{name}" for name, score in top]
    return Tensor(_SCORES, "BYTES", (len(results), len(strings) // len(results)), strings)


def _input_names(described: Described) -> tuple[str, ...]:
    return ("text", "text_pair") if described.config.takes_pair else ("text",)


def _statistics(name: str, version: int, count: Count) -> dict[str, Any]:
    """One entry, in Triton's words. There is no cache, and what a batch cost is not kept by its size."""
    total_s = count.tokenize_s + count.queue_s + count.forward_s
    times: Mapping[str, tuple[int, float]] = {
        "success": (count.good_calls, total_s),
        "fail": (count.failed_calls, 0.0),
        "queue": (count.good_calls, count.queue_s),
        "compute_input": (count.good_calls, count.tokenize_s),
        "compute_infer": (count.good_calls, count.forward_s),
        "compute_output": (count.good_calls, 0.0),
        "cache_hit": (0, 0.0),
        "cache_miss": (0, 0.0),
    }
    return {
        "name": to_segment(name),
        "version": str(version),
        "last_inference": round(count.last_s * 1000),
        "inference_count": count.rows,
        "execution_count": count.batches,
        "inference_stats": {what: {"count": n, "ns": round(s * 1e9)} for what, (n, s) in times.items()},
        "batch_stats": [],
    }
