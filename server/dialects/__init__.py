"""Other servers' protocols, so that their clients work as they are: thin routers over one service call.

    huggingface      /adapters/{adapter}                          Hugging Face Inference
    tei              /adapters/{adapter}/predict, info, health    Text Embeddings Inference
    open_inference   /v2/**                                       Open Inference Protocol V2: Triton, KServe
    repository       /v2/repository/**                            its loading and unloading
    vllm             /classify, /v1/models, /v1/load_lora_adapter OpenAI's and vLLM's shape

`add_dialects` adds them to the application.
"""

import re

from fastapi import FastAPI

from server.dialects import huggingface, open_inference, repository, tei, vllm
from server.dialects.backend import Backend
from server.dialects.tensors import InferRequest
from server.guard import Bounds
from server.schemas import MAX_BODY_BYTES

# Bodies that routes read by hand, for the documentation.
BODIES = (
    huggingface.HuggingFaceRequest,
    tei.PredictRequest,
    InferRequest,
    repository.IndexRequest,
    repository.LoadRequest,
    repository.UnloadRequest,
    vllm.VllmClassifyRequest,
    vllm.VllmLoadRequest,
    vllm.VllmUnloadRequest,
)

_INFER = re.compile(r"/v2/models/.+/infer")
_LOAD = re.compile(r"/v2/repository/models/[^/]+/load")


def add_dialects(app: FastAPI, backend: Backend) -> None:
    """Add every dialect's routes."""
    tei.add_routes(app, backend)
    huggingface.add_routes(app, backend)
    open_inference.add_routes(app, backend)
    repository.add_routes(app, backend)
    vllm.add_routes(app, backend)


def bounds_of(path: str) -> Bounds | None:
    """What the guard lets through on a path where that is not what it lets through elsewhere."""
    if _INFER.fullmatch(path):
        return Bounds(MAX_BODY_BYTES, may_be_compressed=True)
    if _LOAD.fullmatch(path):
        return Bounds(repository.MAX_LOAD_BYTES)
    return None
