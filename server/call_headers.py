"""Headers of a classification: the deadline that a call came with, and what its reply says of adapter and time."""

import re

from starlette.requests import Request

from server.answers import Identity
from server.errors import InvalidRequestError, quoted
from server.service import MAX_TIMEOUT_S, Classified
from server.submission import Stages

_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def timeout_s(request: Request) -> float:
    """Seconds from X-Timeout-S, at most MAX_TIMEOUT_S. Raises InvalidRequestError (422) unless it is above 0."""
    header = request.headers.get("x-timeout-s")
    if header is None:
        return MAX_TIMEOUT_S
    if not _DECIMAL.fullmatch(header) or not float(header) > 0:
        raise InvalidRequestError(
            f"X-Timeout-S is {quoted(header)}, not a positive number of seconds", param="X-Timeout-S"
        )
    return min(float(header), MAX_TIMEOUT_S)


def reply_headers(classified: Classified) -> dict[str, str]:
    """Server-Timing with the stages, and which adapter answered where there was only one."""
    headers = {"server-timing": _timing(classified.stages)}
    return headers if classified.adapter is None else headers | adapter_headers(classified.adapter)


def adapter_headers(adapter: Identity) -> dict[str, str]:
    """X-Adapter-Id, -Version and -Sha256, of which 12 digits."""
    return {
        "x-adapter-id": adapter["adapter"],
        "x-adapter-version": str(adapter["version"]),
        "x-adapter-sha256": adapter["sha256"][:12],
    }


def _timing(stages: Stages) -> str:
    named = {"tokenize": stages.tokenize_s, "queue": stages.queue_s, "forward": stages.forward_s}
    return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in named.items())
