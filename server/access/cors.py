"""Which web pages may call from a browser: none, unless the operator names their origins.

A page names itself in Origin, and the browser keeps replies from it that do not name it back. No cookie opens
anything here, so that none is asked for. Knows nothing of routes.
"""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

_TAKEN = (
    "authorization",
    "content-type",
    "idempotency-key",
    "if-match",
    "x-request-id",
    "x-route-key",
    "x-timeout-s",
)
_SHOWN = (
    "etag",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "server-timing",
    "x-adapter-id",
    "x-adapter-sha256",
    "x-adapter-version",
    "x-error-message",
    "x-request-id",
)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call every route of `app`; nothing changes where there are none."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=list(_TAKEN),
            expose_headers=list(_SHOWN),
        )
