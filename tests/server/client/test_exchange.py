"""When a request is sent again, how long that waits, and what becomes of every answer that is none."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from server import errors as server_errors
from server.client import errors
from server.client.exchange import LONGEST_PAUSE_S, Attempts, Request, check, error_of, json_of, retry_after_s
from server.error_replies import error_reply

READ = Request("GET", "/v1/info")


def reply(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=body, headers=names, request=httpx.Request("GET", "http://test/v1/info"))


def attempts(request: Request = READ, most: int = 3) -> Attempts:
    return Attempts(request, attempts=most, url="http://test")


@pytest.mark.parametrize(
    "outcome",
    [
        reply(429, content_type="application/json"),
        reply(503, content_type="application/json"),
        reply(502),
        reply(500, content_type="text/plain"),
        reply(504),
        httpx.ConnectError("x"),
        httpx.ReadError("x"),
        httpx.RemoteProtocolError("x"),
    ],
)
def test_what_may_pass_is_tried_again_ever_later(outcome: httpx.Response | httpx.TransportError) -> None:
    tries = attempts()
    first, second = tries.pause_s(outcome), tries.pause_s(outcome)
    assert first is not None
    assert second is not None
    assert 0.4 <= first <= 0.6
    assert 0.8 <= second <= 1.2
    assert attempts(most=1).pause_s(reply(200)) is None


@pytest.mark.parametrize("status", [200, 201, 202, 301, 400, 401, 403, 404, 409, 413, 422, 507])
def test_what_will_not_pass_is_not(status: int) -> None:
    assert attempts().pause_s(reply(status, content_type="application/json")) is None


@pytest.mark.parametrize("status", [500, 504])
def test_the_server_s_own_word_that_it_failed_is_final(status: int) -> None:
    assert attempts().pause_s(reply(status, content_type="application/json")) is None


def test_retry_after_is_kept_to_and_never_undercut() -> None:
    for _ in range(50):
        pause_s = attempts().pause_s(reply(503, retry_after="7"))
        assert pause_s is not None
        assert 7 <= pause_s <= 8.75


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    response = reply(429, retry_after=f"{LONGEST_PAUSE_S + 1:.0f}")
    assert attempts().pause_s(response) is None
    error = error_of(response)
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after_s == LONGEST_PAUSE_S + 1


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    found = retry_after_s(reply(503, retry_after=later))
    assert found is not None
    assert 80 < found <= 90
    assert retry_after_s(reply(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")) == 0
    assert retry_after_s(reply(503, retry_after="soon")) is None
    assert retry_after_s(reply(503)) is None


def test_the_last_answer_is_the_answer() -> None:
    tries = attempts(most=2)
    assert tries.pause_s(reply(503)) is not None
    assert tries.pause_s(reply(503)) is None


def test_the_last_failure_is_unreachable() -> None:
    tries = attempts(most=2)
    assert tries.pause_s(httpx.ConnectError("x")) is not None
    with pytest.raises(errors.UnreachableError, match="http://test"):
        tries.pause_s(httpx.ConnectError("x"))


def test_a_request_that_is_sent_once_is_not_sent_twice() -> None:
    once = Request("GET", "/readyz", sends_again=False)
    assert attempts(once).pause_s(reply(503)) is None
    with pytest.raises(errors.UnreachableError):
        attempts(once).pause_s(httpx.ConnectError("x"))


def test_no_answer_in_time_is_not_tried_again() -> None:
    with pytest.raises(errors.DeadlineError):
        attempts().pause_s(httpx.ReadTimeout("x"))


def test_a_key_in_an_error_of_the_transport_is_not_repeated() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        attempts().pause_s(httpx.LocalProtocolError("Illegal header value b'Bearer ad_secret\\n'"))
    assert "secret" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


def every_server_error() -> list[type[server_errors.ServerError]]:
    found, left = [], [server_errors.ServerError]
    while left:
        left += (kind := left.pop()).__subclasses__()
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", every_server_error())
@pytest.mark.parametrize("path", ["/v1/classify", "/readyz"])
def test_every_error_the_server_writes_is_read(kind: type[server_errors.ServerError], path: str) -> None:
    raised = server_errors.ServerError("the message", param="items.3", hint="the hint", details={"tensor": "head.bias"})
    raised.status, raised.code = kind.status, kind.code
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": []}
    written = error_reply(raised, scope)
    read = httpx.Response(written.status_code, headers=dict(written.headers), content=bytes(written.body))
    read.request = httpx.Request("GET", f"http://test{path}")
    error = error_of(read)
    assert (error.message, error.hint) == ("the message", "the hint")
    if isinstance(error, errors.StatusError):
        assert (error.status, error.code, error.param) == (kind.status, kind.code, "items.3")
        assert error.request_id == written.headers["x-request-id"]
        assert error.details["tensor"] == "head.bias"
        assert (error.retry_after_s is not None) == (kind.status in (429, 503))
        assert type(error) is errors.class_of(kind.status)
    else:
        assert isinstance(error, errors.DeadlineError)
        assert kind.status == 504


def test_an_error_that_is_not_the_server_s_has_its_status() -> None:
    error = error_of(reply(502, b"<html>Bad Gateway</html>"))
    assert isinstance(error, errors.StatusError)
    assert (error.status, error.code) == (502, "HTTP_502")


@pytest.mark.parametrize("response", [reply(200, b"<html>"), reply(200, b"[]"), reply(302, location="/login")])
def test_an_answer_that_is_not_the_server_s_is_said_to_be(response: httpx.Response) -> None:
    with pytest.raises(errors.UnexpectedAnswerError, match="GET /v1/info"):
        json_of(response)


def test_success_passes() -> None:
    check(reply(202))
    assert json_of(reply(200, b'{"a": 1}')) == {"a": 1}
