import json
import socket
import threading
from collections.abc import Iterator

import pytest

from loadtests.http_client import AnswerError, drive, is_whole, post

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers every request on its connections with `reply`, in two pieces."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.bodies: list[object] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while asked := connection.recv(1 << 16):
                self.bodies.append(json.loads(asked.partition(b"\r\n\r\n")[2]))
                connection.sendall(self.reply[:20])
                connection.sendall(self.reply[20:])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found = Server(getattr(request, "param", GOOD))
    yield found
    found.close()


def test_every_client_asks_in_order_and_counts_its_answers(server: Server) -> None:
    requests = [post(f"{server.url}/v1/classify", {"n": n}) for n in range(3)]
    driven = drive(server.url, requests, connections=2, seconds=0.05)
    assert driven.requests == len(server.bodies) >= 2
    assert {json.dumps(body) for body in server.bodies} <= {f'{{"n": {n}}}' for n in range(3)}
    assert max(driven.latencies_s) <= driven.seconds


@pytest.mark.parametrize("server", [b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n"], indirect=True)
def test_a_refusal_ends_the_drive(server: Server) -> None:
    with pytest.raises(AnswerError, match="429"):
        drive(server.url, [post(server.url, {})], connections=1, seconds=0.05)


@pytest.mark.parametrize("server", [b""], indirect=True)
def test_a_closed_connection_is_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.http_client.ANSWER_WITHIN_S", 0.1)
    with pytest.raises(AnswerError, match="no reply"):
        drive(server.url, [post(server.url, {})], connections=1, seconds=0.05)


def test_a_url_has_a_port() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        drive("http://localhost", [b""], connections=1, seconds=0.01)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nConte", False),
        (GOOD[:-1], False),
        (GOOD, True),
        (GOOD.replace(b"Content-Length", b"content-length"), True),
    ],
)
def test_a_reply_is_whole_with_its_last_byte(reply: bytes, expected: bool) -> None:
    assert is_whole(reply) is expected


def test_a_reply_without_a_length_is_none() -> None:
    with pytest.raises(AnswerError, match="without Content-Length"):
        is_whole(b"HTTP/1.1 200 OK\r\nX-Content-Length: 2\r\n\r\n{}")
