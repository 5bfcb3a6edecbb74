"""From the middlewares straight to a route's function: for a route that is asked all the time.

FastAPI solves dependencies, keeps exit stacks and looks at every route on the way to a function that needs none of it;
that costs as much as the rest of a request. A `DirectRoute` is declared, documented and guarded like any other, and
its function takes the request and returns the response. `Shortcut` enters it without the router, by method and path.
Errors go to whoever stands around: `server.error_replies.Envelope`.
"""

from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route without parameters, whose function is `async (Request) -> Response`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the function; another method is the framework's to refuse."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class Shortcut:
    """ASGI middleware in front of the router; innermost of ours. Everything but the direct routes passes by."""

    def __init__(self, app: ASGIApp, *, routes: Iterable[DirectRoute]) -> None:
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            route = self._routes.get((scope["method"], scope["path"]))
            if route is not None:
                scope["route"] = route
                await route.handle(scope, receive, send)
                return
        await self._app(scope, receive, send)
