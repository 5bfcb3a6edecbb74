"""GET /docs: Swagger UI over /openapi.json, from files in this package. No other server is asked for anything.

The addresses in the page are relative, so that it works behind any prefix; its policy forbids the browser to go
elsewhere. Knows nothing of the routes it shows.
"""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from server.access.gate import needs
from server.errors import RouteNotFoundError

_FOLDER = Path(__file__).with_name("swagger_ui")
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "initializer.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
# Swagger UI sets styles on its elements and has its pictures in the style sheet; it fetches the document from here.
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AdaKron server</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/initializer.js"></script>
</body>
</html>
"""


def add_docs(app: FastAPI) -> None:
    """Add the page and its files; none of these routes is in the document."""

    @app.get("/docs", include_in_schema=False)
    @needs("read")
    async def page() -> Response:
        return Response(_PAGE, media_type="text/html", headers={"content-security-policy": _POLICY})

    @app.get("/docs/{file}", include_in_schema=False)
    @needs("read")
    async def asset(request: Request, file: str) -> Response:
        if file not in _ASSETS:
            raise RouteNotFoundError("no such file", hint="/docs is the page")
        content, tag = _read(file)
        # Asked for again every time, and sent again only after an update of the package.
        headers = {"etag": tag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers | {"content-type": _ASSETS[file]})


@cache
def _read(name: str) -> tuple[bytes, str]:
    """A file, and its ETag. `name` is one of ours, never a client's."""
    content = (_FOLDER / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
