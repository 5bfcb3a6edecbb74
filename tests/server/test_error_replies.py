import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from adakron import errors as adakron_errors
from server import errors
from server.error_replies import MAX_REPLY_BYTES, STATUS_OF, as_server_error, error_reply, install_error_handlers
from server.errors import ServerError

ERROR: list[Exception] = []


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(redirect_slashes=False)
    install_error_handlers(app)

    @app.get("/v1/raise")
    @app.get("/raise")
    @app.get("/classify")
    @app.get("/v2/raise")
    @app.get("/adapters/raise")
    async def fail() -> None:
        raise ERROR[0]

    @app.get("/v1/limit")
    async def limit(limit: int) -> dict[str, int]:
        return {"limit": limit}

    @app.get("/v1/good")
    async def good() -> str:
        return "good"

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def raising(client: httpx.AsyncClient, error: Exception, path: str = "/v1/raise") -> httpx.Response:
    ERROR[:] = [error]
    return await client.get(path)


async def test_native_body_has_every_member(client: httpx.AsyncClient) -> None:
    error = errors.AdapterNotFoundError("no adapter 'x'", param="adapter", hint="did you mean y?")
    reply = await raising(client, error)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "error": {
            "message": "no adapter 'x'",
            "type": "NotFoundError",
            "code": "ADAPTER_NOT_FOUND",
            "param": "adapter",
            "hint": "did you mean y?",
            "request_id": reply.headers["x-request-id"],
        }
    }


async def test_classify_answers_in_the_native_form(client: httpx.AsyncClient) -> None:
    assert "message" in (await raising(client, errors.ConflictError("x"), "/classify")).json()["error"]


async def test_v2_has_one_string(client: httpx.AsyncClient) -> None:
    error = errors.AdapterNotFoundError("no adapter 'x'", param="adapter", hint="did you mean y?")
    reply = await raising(client, error, "/v2/raise")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "error": "no adapter 'x' Hint: did you mean y?",
        "error_type": "NotFoundError",
        "code": "ADAPTER_NOT_FOUND",
        "request_id": reply.headers["x-request-id"],
    }


async def test_v2_without_a_hint_is_the_message(client: httpx.AsyncClient) -> None:
    assert (await raising(client, errors.ConflictError("x"), "/v2/raise")).json()["error"] == "x"


async def test_v2_stays_within_the_bound(client: httpx.AsyncClient) -> None:
    error = errors.ConflictError("\N{GRINNING FACE}" * 5000, hint="\N{GRINNING FACE}" * 5000)
    assert len((await raising(client, error, "/v2/raise")).content) <= MAX_REPLY_BYTES


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.OverloadedError("x"), "Overloaded"),
        (errors.NotReadyError("x"), "Unhealthy"),
        (errors.InvalidRequestError("x"), "Validation"),
        (errors.BodyTooLargeError("x"), "Validation"),
        (errors.DeadlineExceededError("x"), "Backend"),
    ],
)
async def test_below_adapters_the_type_is_a_word_of_tei(
    client: httpx.AsyncClient, error: ServerError, word: str
) -> None:
    assert (await raising(client, error, "/adapters/raise")).json()["error_type"] == word


async def test_elsewhere_it_is_a_problem(client: httpx.AsyncClient) -> None:
    error = errors.AdapterNotFoundError("no adapter 'x'", param="adapter", hint="did you mean y?")
    reply = await raising(client, error, "/raise")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {
        "type": "urn:adakron:error:adapter-not-found",
        "title": "Not Found",
        "status": 404,
        "detail": "no adapter 'x'",
        "instance": "/raise",
        "code": "ADAPTER_NOT_FOUND",
        "param": "adapter",
        "hint": "did you mean y?",
        "error": "no adapter 'x' Hint: did you mean y?",
        "error_type": "NotFoundError",
        "request_id": reply.headers["x-request-id"],
    }


async def test_a_bad_artefact_tells_tensor_expected_and_found(client: httpx.AsyncClient) -> None:
    error = adakron_errors.ShapeError("wrong", tensor="layers.0.a1.weight", expected="[4, 8]", found="[8, 4]", hint="h")
    reply = await raising(client, error)
    assert reply.status_code == 422
    body = reply.json()["error"]
    assert body["code"] == "INVALID_SHAPE"
    assert (body["tensor"], body["expected"], body["found"]) == ("layers.0.a1.weight", "[4, 8]", "[8, 4]")
    assert body["hint"] == "h"


async def test_a_bad_config_names_its_key(client: httpx.AsyncClient) -> None:
    reply = await raising(client, adakron_errors.ConfigError("bad", key="bottleneck"))
    assert reply.json()["error"]["param"] == "bottleneck"


@pytest.mark.parametrize("kind", STATUS_OF, ids=lambda kind: kind.__name__)
def test_errors_of_the_runtime_keep_their_code(kind: type[adakron_errors.AdaKronError]) -> None:
    known = as_server_error(kind("x"))
    assert (known.status, known.code) == (STATUS_OF[kind], kind.code)


@pytest.mark.parametrize("error", [ValueError("secret"), adakron_errors.AdaKronError("secret"), KeyError("secret")])
async def test_an_unforeseen_error_is_500_without_its_text_and_logged(
    client: httpx.AsyncClient, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/raise", "/raise"):
        reply = await raising(client, error, path)
        assert reply.status_code == 500
        assert "secret" not in reply.text + str(reply.headers)
        assert "INTERNAL" in reply.text
        assert reply.headers["x-request-id"] in caplog.text
    assert "secret" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def test_details_of_a_framework_error_are_not_shown(client: httpx.AsyncClient) -> None:
    reply = await raising(client, HTTPException(400, "quotes the request"))
    assert reply.status_code == 400
    assert "quotes" not in reply.text


@pytest.mark.parametrize(("path", "media"), [("/v1/nope", "application/json"), ("/nope", "application/problem+json")])
async def test_unknown_routes_are_404_in_the_form_of_their_prefix(
    client: httpx.AsyncClient, path: str, media: str
) -> None:
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == media
    assert "ROUTE_NOT_FOUND" in reply.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH"])
async def test_other_methods_are_405_with_allow(client: httpx.AsyncClient, method: str) -> None:
    reply = await client.request(method, "/v1/good")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET"


async def test_a_bad_query_is_422_that_names_the_parameter(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/limit", params={"limit": "secret"})
    assert reply.status_code == 422
    assert reply.json()["error"]["param"] == "limit"
    assert "secret" not in reply.text


async def test_every_reply_has_request_id_and_server_timing(client: httpx.AsyncClient) -> None:
    for path in ("/v1/good", "/v1/nope", "/nope"):
        reply = await client.get(path)
        assert len(reply.headers["x-request-id"]) == 32
        assert reply.headers["server-timing"].startswith("total;dur=")
        assert reply.headers.get_list("x-request-id") == [reply.headers["x-request-id"]]


@pytest.mark.parametrize("header", ["x-request-id", "x-amzn-trace-id"])
async def test_the_clients_request_id_is_taken(client: httpx.AsyncClient, header: str) -> None:
    reply = await client.get("/v1/nope", headers={header: "Root=1-abc:7"})
    assert reply.headers["x-request-id"] == "Root=1-abc:7"
    assert reply.json()["error"]["request_id"] == "Root=1-abc:7"


@pytest.mark.parametrize("offered", ["x" * 129, "a b", "a\tb", "<script>", "", "-a"])
async def test_a_request_id_of_another_form_is_replaced(client: httpx.AsyncClient, offered: str) -> None:
    reply = await client.get("/v1/good", headers={"x-request-id": offered})
    assert len(reply.headers["x-request-id"]) == 32


@pytest.mark.parametrize("kind", [errors.OverloadedError, errors.NotReadyError, errors.EngineFailedError])
async def test_retry_after_is_one_to_three_seconds_and_differs(
    client: httpx.AsyncClient, kind: type[ServerError]
) -> None:
    waits = {(await raising(client, kind("x"))).headers["retry-after"] for _ in range(60)}
    assert waits == {"1", "2", "3"}


async def test_retry_after_is_the_servers_own_where_it_knows(client: httpx.AsyncClient) -> None:
    reply = await raising(client, errors.NotReadyError("x", retry_after_s=17))
    assert reply.headers["retry-after"] == "17"


async def test_retry_after_is_on_no_other_status(client: httpx.AsyncClient) -> None:
    for error in (errors.DeadlineExceededError("x"), errors.ConflictError("x"), ValueError()):
        assert "retry-after" not in (await raising(client, error)).headers


async def test_x_error_message_is_one_short_line_of_ascii(client: httpx.AsyncClient) -> None:
    reply = await raising(client, errors.ConflictError("é\r\nSet-Cookie: x\u2028" + "y" * 2000))
    line = reply.headers["x-error-message"]
    assert line.isascii()
    assert "\n" not in line
    assert "\r" not in line
    assert line.startswith("CONFLICT: ")
    assert len(line) < 400
    assert "set-cookie" not in reply.headers


WIDE = "\U0001f600"


@pytest.mark.parametrize("path", ["/v1/raise", "/raise"])
@pytest.mark.parametrize("fill", ["x", WIDE, '"', "\\", "\x00", "\ud800"])
async def test_bodies_stay_under_4_kib_and_are_json(client: httpx.AsyncClient, path: str, fill: str) -> None:
    long = fill * 100_000
    details: dict[str, Any] = {"tensor": long, "errors": [{"message": fill * 500}] * 8}
    reply = await raising(client, errors.ConflictError(long, param=long, hint=long, details=details), path)
    assert len(reply.content) <= MAX_REPLY_BYTES
    assert json.loads(reply.content)


async def test_an_exception_after_the_reply_began_is_not_answered_twice() -> None:
    from server.error_replies import Envelope

    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("late")

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ValueError, match="late"):
        await Envelope(app)({"type": "http", "path": "/", "headers": []}, None, send)  # type: ignore[arg-type]
    assert len(sent) == 1


def test_details_cannot_replace_the_essence() -> None:
    error = errors.ConflictError("true", details={"message": "false", "code": "FALSE"})
    reply = error_reply(error, {"type": "http", "path": "/v1/x", "headers": []})
    body = json.loads(bytes(reply.body))["error"]
    assert (body["message"], body["code"]) == ("true", "CONFLICT")
