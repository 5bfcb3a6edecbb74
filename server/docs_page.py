"""GET /docs: Swagger UI over /openapi.json, from files in this package. No other server is asked for anything.

The addresses in the page are relative, so that it works behind any prefix; its policy forbids the browser to go
elsewhere. The page is public, for a browser cannot be told to open an address with a key; it holds nothing that the
package does not. What it shows, /openapi.json, needs a key where there are keys, and the page asks for one: it stays in
the page's memory, and goes out in a header alone. Knows nothing of the routes it shows.
"""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from server.errors import RouteNotFoundError

_FOLDER = Path(__file__).with_name("swagger_ui")
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "initializer.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
# Swagger UI sets styles on its elements and has its pictures in the style sheet; the document is fetched from here. No
# form may be sent: what is typed into the one there is reaches the script, and never an address.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'"
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AdaKron server</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/page.css">
</head>
<body>
<noscript>This page needs JavaScript; openapi.json, beside it, is the document that it shows.</noscript>
<form id="key-form" autocomplete="off" hidden>
<h1>AdaKron server</h1>
<label for="key">This server asks for a key</label>
<div>
<input id="key" type="password" maxlength="256" placeholder="ad_..." autocomplete="off" spellcheck="false" required>
<button type="submit">Open</button>
</div>
<p id="refusal" role="alert"></p>
<p>One with the scope <code>read</code> opens this page, and what else it may do can be tried here. It is kept in the
memory of this page alone: not stored, and never in an address. Loading the page again forgets it.</p>
</form>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/initializer.js"></script>
</body>
</html>
"""


def add_docs(app: FastAPI) -> None:
    """Add the page and its files; none of these routes is in the document."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE, media_type="text/html", headers={"content-security-policy": _POLICY})

    @app.get("/docs/{file}", include_in_schema=False)
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
