"""The admin routes of a running server, as the command line uses them.

A request that fails on its way, or that the server has no time for, is sent again a few times; each change carries an
Idempotency-Key, so that it is done once however often it is sent. Knows nothing of arguments or of printing.
"""

import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

ATTEMPTS = 4
TIMEOUT_S = 60.0
LONGEST_PAUSE_S = 10.0
_AGAIN = frozenset({429, 502, 503, 504})
_PAGE = 200


class ClientError(Exception):
    """The server refused, or could not be reached; the message says why, and what can be done."""


class Client:
    """One server. Use as a context manager. Every method raises ClientError."""

    def __init__(self, url: str, api_key: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._url = url
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, transport=transport)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ClientError("ADAKRON_URL or ADAKRON_API_KEY cannot be used in a request") from error

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def adapters(self) -> Iterator[dict[str, Any]]:
        """Every adapter, as the list shows it, in the order of names."""
        cursor: str | None = None
        while True:
            query = {"limit": str(_PAGE)} | ({"cursor": cursor} if cursor else {})
            page = self._json("GET", "/v1/adapters", params=query)
            yield from page["adapters"]
            cursor = page["next"]
            if cursor is None:
                return

    def show(self, name: str) -> dict[str, Any]:
        """One adapter with versions, configuration and history."""
        return self._json("GET", _path(name))

    def push(self, name: str, data: bytes, *, activate: bool) -> dict[str, Any]:
        """Register an artefact."""
        headers = {"content-type": "application/octet-stream"}
        return self._change("PUT", _path(name), content=data, headers=headers, params={"activate": _flag(activate)})

    def push_many(self, artefacts: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
        """Register and activate many; the result of each, in order. Sending one again is safe: no key is needed."""
        files = [(name, ("adapter_model.safetensors", data)) for name, data in artefacts]
        results: list[dict[str, Any]] = self._json("POST", "/v1/adapters/bulk", files=files)["results"]
        return results

    def activate(self, name: str, version: int) -> dict[str, Any]:
        """Let the bare name answer with this version."""
        return self._change("POST", f"{_path(name)}/activate", json={"version": version})

    def split(self, name: str, weights: Mapping[int, int], shadow: int | None) -> dict[str, Any]:
        """Share the calls to the bare name out among versions."""
        body: dict[str, Any] = {"weights": {str(version): weight for version, weight in weights.items()}}
        return self._change("PUT", f"{_path(name)}/split", json=body | ({} if shadow is None else {"shadow": shadow}))

    def remove(self, name: str, version: int | None) -> dict[str, Any]:
        """Delete one version, or the name with all of them."""
        query = {} if version is None else {"version": str(version)}
        return self._change("DELETE", _path(name), params=query)

    def fetch(self, name: str, version: int) -> bytes:
        """The artefact of one version."""
        return self._send("GET", f"{_path(name)}/versions/{version}").content

    def _change(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        headers = {**options.pop("headers", {}), "idempotency-key": secrets.token_hex(16)}
        return self._json(method, path, headers=headers, **options)

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._send(method, path, **options)
        try:
            body: dict[str, Any] = response.json()
        except json.JSONDecodeError as error:
            raise ClientError(f"{self._url} does not answer like an AdaKron server") from error
        return body

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response: httpx.Response | None = None
        failure: httpx.TransportError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(_pause_s(response, attempt))
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                response, failure = None, error
                continue
            # A bare 500 is the proxy's word for a replica or an admin process that died under the request.
            is_proxy = response.status_code == 500 and "json" not in response.headers.get("content-type", "")
            if response.status_code not in _AGAIN and not is_proxy:
                break
        if response is None:
            raise ClientError(
                f"no server answers at {self._url}: is it running, and is ADAKRON_URL right?"
            ) from failure
        if response.is_success:
            return response
        raise ClientError(_complaint(response))


def complaint_of(error: Mapping[str, Any]) -> str:
    """An error of the server in one line: its message, what it found, and its hint."""
    hint = error.get("hint")
    return f"{error.get('code')}: {error.get('message')}" + (f"; {hint}" if hint else "")


def _complaint(response: httpx.Response) -> str:
    try:
        return complaint_of(response.json()["error"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return f"the server answered {response.status_code} {response.reason_phrase}"


def _pause_s(response: httpx.Response | None, attempt: int) -> float:
    asked = "" if response is None else response.headers.get("retry-after", "")
    pause_s = float(asked) if asked.isascii() and asked.isdecimal() else 0.25 * 2**attempt
    return min(pause_s, LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)


def _path(name: str) -> str:
    return f"/v1/adapters/{quote(name, safe='/')}"


def _flag(value: bool) -> str:
    return "true" if value else "false"
