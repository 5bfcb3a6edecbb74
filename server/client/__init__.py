"""The Python client of a running server: `AdaKron`, and `AsyncAdaKron` with the same methods to await.

    with AdaKron() as server:                                  # ADAKRON_URL, ADAKRON_API_KEY
        print(server.classify("A joy from start to finish.", "sst2").label)
        for outcome in server.classify_many(texts, "sst2"):    # any number of texts
            ...

Needs httpx and nothing else of this project: no torch, no Ray, no FastAPI.
"""

from server.client.asynchronous import AsyncAdaKron
from server.client.batches import Item
from server.client.blocking import AdaKron
from server.client.errors import (
    AccessError,
    ClientError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    RefusedError,
    StatusError,
    UnexpectedAnswerError,
    UnreachableError,
)
from server.client.replies import AdapterResults, Outcome, Result, RowFailure, Score

__all__ = [
    "AccessError",
    "AdaKron",
    "AdapterResults",
    "AsyncAdaKron",
    "ClientError",
    "ConfigurationError",
    "ConflictError",
    "DeadlineError",
    "Item",
    "NotFoundError",
    "Outcome",
    "OverloadedError",
    "RefusedError",
    "Result",
    "RowFailure",
    "Score",
    "StatusError",
    "UnexpectedAnswerError",
    "UnreachableError",
]
