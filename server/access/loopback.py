"""A server without keys answers this machine alone, and not the web pages that are open on it.

A page of anybody's can send requests to a loopback address. A browser says where they come from: in Origin, where
the page has another one, and in Host, where the page's own name was made to lead here.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from server.errors import ForbiddenError, quoted


def check_from_here(scope: Scope, origins: Collection[str]) -> None:
    """Raises ForbiddenError for a request of a web page that is neither ours nor in `origins`."""
    headers = Headers(scope=scope)
    host = headers.get("host", "localhost")
    if not is_loopback(_name_of(host)):
        raise ForbiddenError(
            f"without keys this server answers to loopback names such as localhost alone, not to {quoted(host)}",
            hint="make a key: adakron keys create --scopes classify read admin",
        )
    origin = headers.get("origin")
    if origin is not None and origin not in origins and urlsplit(origin).netloc != host:
        raise ForbiddenError(
            f"without keys this server answers no web page of {quoted(origin)}",
            hint="ADAKRON_CORS_ORIGINS names the pages that may call",
        )


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether the name or address of a host is this machine's own, for itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
