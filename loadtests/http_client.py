"""A client that costs next to nothing: prepared requests over kept-alive sockets, one selector, no HTTP library.

It shares the machine with the servers it measures, so every microsecond it takes is one that they do not get.
Knows bytes, sockets and clocks; nothing of what is asked.
"""

import json
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

ANSWER_WITHIN_S = 30.0
_READ_BYTES = 1 << 18


class AnswerError(Exception):
    """A reply that is not 200, or no reply at all; the message shows its beginning."""


@dataclass(frozen=True, slots=True)
class Drive:
    """What one drive measured: seconds from the first request to the last reply, and each request's own.

    client_cpu_s  of this process, all of it
    """

    seconds: float
    latencies_s: tuple[float, ...]
    client_cpu_s: float

    @property
    def requests(self) -> int:
        return len(self.latencies_s)


def post(url: str, document: object) -> bytes:
    """The bytes of a POST request with this JSON document."""
    parts = urlsplit(url)
    body = json.dumps(document).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def drive(url: str, requests: Sequence[bytes], *, connections: int, seconds: float) -> Drive:
    """Keep `connections` requests under way for `seconds`: prepared ones, in order and from the first again.

    What is under way then is awaited and counted. Raises AnswerError, OSError.
    """
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"{url}: expected http://host:port")
    with selectors.DefaultSelector() as selector:
        sockets = [socket.create_connection((parts.hostname, parts.port), ANSWER_WITHIN_S) for _ in range(connections)]
        try:
            for one in sockets:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(one, selectors.EVENT_READ)
            return _drive(selector, sockets, requests, seconds)
        finally:
            for one in sockets:
                one.close()


def _drive(
    selector: selectors.BaseSelector, sockets: Sequence[socket.socket], requests: Sequence[bytes], seconds: float
) -> Drive:
    sent_s: dict[object, float] = {}
    received: dict[object, bytes] = {}
    latencies_s: list[float] = []
    number = 0
    cpu_s = time.process_time()
    began_s = time.perf_counter()
    deadline_s = began_s + seconds
    now_s = began_s

    def send(one: socket.socket) -> None:
        nonlocal number
        sent_s[one] = time.perf_counter()
        one.sendall(requests[number % len(requests)])
        number += 1

    for waiting in sockets:
        send(waiting)
    while sent_s:
        ready = selector.select(ANSWER_WITHIN_S)
        if not ready:
            raise AnswerError(f"no reply within {ANSWER_WITHIN_S:g} s")
        for key, _ in ready:
            one = key.fileobj
            assert isinstance(one, socket.socket)
            data = one.recv(_READ_BYTES)
            if not data:
                raise AnswerError("the connection was closed instead of a reply")
            data = received.pop(one, b"") + data
            if not is_whole(data):
                received[one] = data
                continue
            now_s = time.perf_counter()
            latencies_s.append(now_s - sent_s.pop(one))
            if now_s < deadline_s:
                send(one)
    return Drive(now_s - began_s, tuple(latencies_s), time.process_time() - cpu_s)


def is_whole(reply: bytes) -> bool:
    """Whether all of a reply is there. Raises AnswerError for one that is not 200 or does not say how long it is."""
    head, blank, body = reply.partition(b"\r\n\r\n")
    if not blank:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise AnswerError(reply[:300].decode(errors="replace"))
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise AnswerError(f"a reply without Content-Length: {head[:300].decode(errors='replace')}")
    return len(body) >= int(lower[at + 17 :].split(b"\r\n", 1)[0])
