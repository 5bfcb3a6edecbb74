"""The door of every route: a declared scope or the public list, and nothing in between.

    @app.post("/v1/classify")
    @needs("classify")          closest to the function: it marks the function, and changes nothing else
    async def classify(...): ...

    guard_routes(app, gate)     once all routes are there

`guard_routes` refuses an application that has a route without a scope, so that one cannot be forgotten; the scope is
checked when the route was chosen and before anything of it runs, the reading of its body included.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from server.access.caller import NOBODY, Caller, Meter, acting_for
from server.access.keys import Key
from server.access.keys import Scope as KeyScope
from server.access.loopback import check_from_here
from server.error_replies import reply_headers
from server.errors import ForbiddenError, UnauthenticatedError
from server.telemetry.notes import current_notes

PUBLIC = frozenset(
    # What balancers ask; and the page that asks for a key, which is the same on every server.
    {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/docs/{file}"}
)
MAX_KEY_BYTES = 256
_MARK = "__adakron_scope__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Needed:
    """What a route asks for. whole: it shows something of all tenants at once, and a bound key does not open it."""

    scope: KeyScope
    whole: bool = False


def needs(scope: KeyScope, *, whole: bool = False) -> Callable[[F], F]:
    """Declare the scope of the route that the decorated function answers."""

    def mark(endpoint: F) -> F:
        setattr(endpoint, _MARK, Needed(scope, whole))
        return endpoint

    return mark


class Keys(Protocol):
    """`server.access.ring.KeyRing`, or nothing to check."""

    @property
    def is_open(self) -> bool: ...

    def find(self, offered: bytes) -> Key | None: ...


class Limits(Protocol):
    """`server.access.rates.RateLimits`, or no limits."""

    def meter_of(self, key: Key, headers: MutableMapping[str, str]) -> Meter | None: ...

    async def count_wrong_key(self, source: str) -> None:
        """Raises RateLimitedError where there were too many."""
        ...


class Gate:
    """Decides on one request. Without `keys` every door is open. origins: of web pages that may call."""

    def __init__(self, keys: Keys | None = None, limits: Limits | None = None, origins: Collection[str] = ()) -> None:
        self._keys = keys
        self._limits = limits
        self._origins = origins

    async def admit(self, scope: Scope, needed: Needed) -> Caller:
        """Who asks.

        Raises UnauthenticatedError (401), the same for every reason; ForbiddenError (403); RateLimitedError (429) after
        too many wrong keys from one address. A good key is let in whatever others from its address do.
        """
        if self._keys is None:
            return NOBODY
        if self._keys.is_open:
            check_from_here(scope, self._origins)
            return NOBODY
        offered = _offered(scope)
        key = self._keys.find(offered)
        if key is None:
            if offered and self._limits is not None:
                await self._limits.count_wrong_key(scope["client"][0] if scope.get("client") else "")
            raise UnauthenticatedError(
                "this route needs a key", hint="send one as 'Authorization: Bearer ...'; adakron keys create makes it"
            )
        if needed.scope not in key.scopes:
            raise ForbiddenError(
                f"this key has not the scope {needed.scope}", hint="adakron keys create makes one that has"
            )
        if needed.whole and key.prefix is not None:
            raise ForbiddenError(
                f"this key is for the adapters of {key.prefix} alone, and this route shows something of all",
                hint="use a key that is not bound to a tenant",
            )
        meter = None if self._limits is None else self._limits.meter_of(key, reply_headers(scope))
        return Caller(key.id, key.prefix, meter)


Scopes = dict[tuple[str, str], Needed | None]


def scopes_of(app: FastAPI, others: Mapping[str, Needed] | None = None) -> Scopes:
    """(method, path) -> what it needs, None for a public one, of every route; method "*" where a route takes any.

    others  by path, of routes whose function is not ours to mark, such as the framework's documentation
    Raises TypeError for a route that does not say.
    """
    found: Scopes = {}
    for route, path in _routes(app.routes):
        needed = _needed(route, path, others or {})
        for method in getattr(route, "methods", None) or ("*",):
            found[method, path] = needed
    return found


def guard_routes(app: FastAPI, gate: Gate, others: Mapping[str, Needed] | None = None) -> None:
    """Put the gate before every route of `app`. Raises TypeError where one has no scope and is not public."""
    for route, path in _routes(app.routes):
        needed = _needed(route, path, others or {})
        if needed is not None:
            _put_before(route, gate, needed)


def _put_before(route: BaseRoute, gate: Gate, needed: Needed) -> None:
    inner = route.handle

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        caller = await gate.admit(scope, needed)
        notes = current_notes()
        if notes is not None:
            notes.key_id = caller.key_id
        with acting_for(caller):
            await inner(scope, receive, send)

    # The one method that every kind of route is entered by, an included router's and the framework's own among them.
    route.handle = handle  # type: ignore[method-assign]


def _routes(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[BaseRoute, str]]:
    for route in routes:
        included = getattr(route, "original_router", None)  # of what FastAPI puts where a router was included
        if included is not None:
            # Such a route has a context, which its public base class does not tell of.
            yield from _routes(included.routes, prefix + route.include_context.prefix)  # type: ignore[attr-defined]
        elif prefix and not isinstance(route, APIRoute):
            raise TypeError(f"{prefix}: an included router may hold API routes alone; others are copied past the gate")
        else:
            yield route, prefix + str(getattr(route, "path_format", type(route).__name__))


def _needed(route: BaseRoute, path: str, others: Mapping[str, Needed]) -> Needed | None:
    declared: Needed | None = getattr(getattr(route, "endpoint", None), _MARK, None) or others.get(path)
    if declared is None and path not in PUBLIC:
        raise TypeError(f"the route {path} has no scope: mark its function with @needs")
    return declared


def _offered(scope: Scope) -> bytes:
    """The key in the one Authorization header; b"" where there is none, several, or another scheme."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1 or len(values[0]) > MAX_KEY_BYTES:
        return b""
    scheme, _, token = values[0].partition(b" ")
    return bytes(token) if scheme.lower() == b"bearer" else b""
