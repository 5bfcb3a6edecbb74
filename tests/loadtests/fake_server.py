"""A stand-in for the server, with its HTTP contract and no model; it can be told to misbehave.

    python -m tests.loadtests.fake_server        listens on ADAKRON_PORT, as the real one does

Fixed adapters answer by a hash of adapter and text, uploaded ones by the largest value of their head's bias.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

# name -> (labels, takes_pair, problem_type)
FIXED: dict[str, tuple[tuple[str, ...], bool, str]] = {
    "mood": (("bad", "good"), False, "single_label_classification"),
    "topic": (("cars", "food", "film"), False, "single_label_classification"),
    "acme/spam": (("ham", "spam"), False, "single_label_classification"),
    "nli": (("no", "maybe", "yes"), True, "single_label_classification"),
    "likeness": (("value",), True, "regression"),
}
LEASES = 'adakron_leases{replica="r1"} 0.0\nadakron_leases{replica="r2"} 0.0\n'


class FakeServer:
    """What the handler answers from. Misbehaviour, all off at first:

    swap_every   every n-th classify row is answered by another adapter, under the right name
    is_stale     an upload is acknowledged, and the name goes on with what it had
    fail_every   every n-th classify request gets a 503
    """

    def __init__(self) -> None:
        self.swap_every = 0
        self.fail_every = 0
        self.is_stale = False
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.active: dict[str, int] = {}
        self._last_version: dict[str, int] = {}
        self._rows = 0
        self._requests = 0
        self._lock = threading.Lock()

    def handle(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        with self._lock:
            match method, path:
                case "GET", "/readyz":
                    return 200, {"status": "ready"}
                case "GET", "/v1/info":
                    return 200, {"server": "fake"}
                case "GET", "/metrics":
                    return 200, LEASES
                case "GET", "/v1/adapters":
                    return 200, self._list(query)
                case "POST", "/v1/classify":
                    return self._classify(json.loads(body))
            if not path.startswith("/v1/adapters/"):
                return _error(404, "NO_ROUTE")
            name = path.removeprefix("/v1/adapters/")
            match method:
                case "GET" if name not in self.active:
                    return _error(404, "ADAPTER_NOT_FOUND", name)
                case "PUT":
                    return self._put(name, body)
                case "POST" if name.endswith("/activate"):
                    return self._activate(name.removesuffix("/activate"), json.loads(body)["version"])
                case "DELETE":
                    return self._delete(name)
            return _error(405, "METHOD")

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        entries = [
            {
                "name": name,
                "version": 1,
                "sha256": _sha(name),
                "labels": list(labels),
                "num_labels": len(labels),
                "problem_type": problem_type,
                "takes_pair": takes_pair,
            }
            for name, (labels, takes_pair, problem_type) in sorted(FIXED.items())
        ]
        start = int(query.get("cursor", ["0"])[0])
        page = entries[start : start + 2]  # small pages, so that the reader has to turn them
        return {"adapters": page, "next": str(start + 2) if start + 2 < len(entries) else None}

    def _classify(self, body: dict[str, Any]) -> tuple[int, Any]:
        self._requests += 1
        if self.fail_every and self._requests % self.fail_every == 0:
            return _error(503, "NOT_READY")
        asked = [item["adapter"] for item in body.get("items", [])] or [body["adapter"]] * len(body["inputs"])
        if missing := [name for name in asked if name not in FIXED and name not in self.active]:
            return _error(404, "ADAPTER_NOT_FOUND", missing[0])
        inputs = body.get("items") or [{"text": one} if isinstance(one, str) else one for one in body["inputs"]]
        results = [self._result(name, one, body.get("top_k", 1)) for name, one in zip(asked, inputs, strict=True)]
        if "items" in body:
            return 200, {"results": [{**self._origin(n), **r} for n, r in zip(asked, results, strict=True)]}
        return 200, {**self._origin(asked[0]), "results": results}

    def _origin(self, name: str) -> dict[str, Any]:
        if name in FIXED:
            return {"adapter": name, "version": 1, "sha256": _sha(name)}
        version = self.active[name]
        return {"adapter": name, "version": version, "sha256": hashlib.sha256(self.uploads[name][version]).hexdigest()}

    def _result(self, name: str, one: dict[str, str], top_k: int | None) -> dict[str, Any]:
        self._rows += 1
        if name not in FIXED:
            label = _winner(self.uploads[name][self.active[name]])
            return {"label": label, "score": 1.0, "scores": [{"label": label, "score": 1.0}]}
        labels, takes_pair, problem_type = FIXED[name]
        if takes_pair is not ("text_pair" in one):
            return {"error": {"code": "UNEXPECTED_PAIR", "message": "a pair, or none"}}
        odd = self.swap_every and self._rows % self.swap_every == 0
        draw = _sha(f"{'another' if odd else name} {one['text']} {one.get('text_pair')}")
        if problem_type == "regression":
            return {"value": int(draw[:6], 16) / 0xFFFFFF * 5}
        weights = np.array([int(draw[i * 4 : i * 4 + 4], 16) for i in range(len(labels))], float) + 1
        scores = weights / weights.sum()
        pairs = sorted(zip(labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        ranked = [{"label": label, "score": score} for label, score in pairs]
        return {**ranked[0], "scores": ranked[:top_k]}

    def _put(self, name: str, body: bytes) -> tuple[int, Any]:
        try:
            _winner(body)
        except ValueError:
            return _error(422, "HEADER_ERROR")
        version = self._last_version[name] = self._last_version.get(name, 0) + 1
        if not (self.is_stale and name in self.active):
            self.uploads.setdefault(name, {})[version] = body
            self.active[name] = version
        sha256 = hashlib.sha256(body).hexdigest()
        return 201, {"name": name, "version": version, "sha256": sha256, "active": True, "lagging": []}

    def _activate(self, name: str, version: int) -> tuple[int, Any]:
        if version not in self.uploads.get(name, {}):
            return _error(404, "VERSION_NOT_FOUND")
        self.active[name] = version
        sha256 = hashlib.sha256(self.uploads[name][version]).hexdigest()
        return 200, {"name": name, "version": version, "sha256": sha256, "active": True, "lagging": []}

    def _delete(self, name: str) -> tuple[int, Any]:
        if name not in self.active:
            return _error(404, "ADAPTER_NOT_FOUND")
        versions = self.uploads.pop(name)
        del self.active[name]
        return 200, {"name": name, "versions": list(versions), "lagging": []}


@contextmanager
def serving(fake: FakeServer, port: int = 0) -> Iterator[str]:
    """Serve on loopback from a thread; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, reply = fake.handle(self.command, url.path, parse_qs(url.query), body)
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - names that http.server asks for

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _winner(data: bytes) -> str:
    """The label that an uploaded artefact gives. Raises ValueError if it is cut short."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if 8 + length + max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__") > len(data):
        raise ValueError("cut short")
    begin, end = header["head.bias"]["data_offsets"]
    bias = np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4")
    label: str = json.loads(header["__metadata__"]["adakron.config"])["id2label"][str(int(bias.argmax()))]
    return label


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _error(status: int, code: str, message: str = "") -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "x", "code": code, "param": None, "hint": None}}


if __name__ == "__main__":
    with serving(FakeServer(), int(os.environ["ADAKRON_PORT"])):
        threading.Event().wait()
