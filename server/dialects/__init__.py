"""Other servers' protocols, so that their clients work as they are: thin routers over one service call.

    huggingface   /adapters/{adapter}                          Hugging Face Inference
    tei           /adapters/{adapter}/predict, info, health    Text Embeddings Inference

`add_dialects` adds them to the application; `SCOPES` says what a caller of each route must be allowed to do.
"""

from fastapi import FastAPI

from server.dialects import huggingface, tei
from server.dialects.backend import Backend, Scopes
from server.guard import Bounds

SCOPES: Scopes = {**tei.SCOPES, **huggingface.SCOPES}
# Bodies that routes read by hand, for the documentation.
BODIES = (huggingface.HuggingFaceRequest, tei.PredictRequest)


def bounds_of(path: str) -> Bounds | None:
    """What the guard lets through on a path where that is not what it lets through elsewhere."""
    return None


def add_dialects(app: FastAPI, backend: Backend) -> None:
    """Add every dialect's routes."""
    tei.add_routes(app, backend)
    huggingface.add_routes(app, backend)
