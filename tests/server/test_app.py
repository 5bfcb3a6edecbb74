import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import TypeAdapter

from server import examples
from server.access.gate import Gate, scopes_of
from server.answers import ItemsAnswer, ManyAdaptersAnswer, OneAdapterAnswer
from server.app import FRAMEWORK_ROUTES, make_app
from server.errors import NotReadyError, OverloadedError
from server.metrics import Metrics
from server.schemas import MAX_BODY_BYTES, parse_classify_request
from server.service import Service
from server.tally import Count
from server.telemetry.logs import AccessLog
from tests.server.stub_adapters import INFO, StubAdapters, StubAdmin
from tests.server.stub_engine import StubEngine, StubResolver, config_of

ADMIN_OPENAPI = {"paths": {"/v1/adapters": {"get": {"summary": "List"}}}, "components": {"schemas": {"Listed": {}}}}


class Bench:
    def __init__(
        self,
        gate: Gate | None = None,
        cors: Sequence[str] = (),
        admin_openapi: Callable[[], dict[str, Any]] = lambda: ADMIN_OPENAPI,
        access: AccessLog | None = None,
        tracing: Any = None,
    ) -> None:
        self.engine = StubEngine()
        self.resolver = StubResolver(self.engine)
        self.service = Service(
            self.engine,
            self.resolver,
            budget_tokens=1000,
            queue_limit_tokens=10_000,
            queue_limit_rows=300,
            metrics=Metrics(),
            tracing=tracing,
        )
        self.ready: bool | Exception = True
        self.app = make_app(
            self.service,
            info=lambda: INFO,
            is_ready=self.is_ready,
            collect_metrics=self.collect_metrics,
            admin_openapi=admin_openapi,
            adapters=StubAdapters(self.resolver),
            admin=StubAdmin(),
            collect_tallies=self.collect_tallies,
            gate=gate,
            cors=cors,
            access=access,
            tracing=tracing,
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def is_ready(self) -> bool:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    async def collect_metrics(self) -> bytes:
        return self.service.metrics.render()

    async def collect_tallies(self, sha256s: Collection[str] | None) -> dict[str, Count]:
        return self.service.tally.counts(sha256s)

    async def classify(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json", **headers}
        )


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.resolver.add("sst2")
    bench.resolver.add("acme/topics", config_of(("Sport", "Gesundheit ✓"), "multi_label_classification"))
    bench.resolver.add("stsb", config_of(("similarity",), "regression", takes_pair=True))
    await bench.service.start()
    async with bench.client:
        yield bench
    bench.engine.gate.set()
    await bench.service.stop(grace_s=1)
    assert bench.engine.n_held == 0


def code_of(reply: httpx.Response) -> str:
    body = reply.json()
    return str(body["error"]["code"] if isinstance(body["error"], dict) else body["code"])


# ---- classify ------------------------------------------------------------------------------------------------------

GOOD = {"adapter": "sst2", "inputs": ["a text"]}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"adapter": "sst2", "inputs": ["a", " "], "top_k": None}, OneAdapterAnswer),
        ({"adapter": "acme/topics", "inputs": "a"}, OneAdapterAnswer),
        (
            {"adapters": ["sst2", "acme/topics", "stsb"], "inputs": [{"text": "a", "text_pair": "b"}]},
            ManyAdaptersAnswer,
        ),
        (
            {"items": [{"adapter": "stsb", "text": "a", "text_pair": "b"}, {"adapter": "stsb", "text": "a"}]},
            ItemsAnswer,
        ),
    ],
)
async def test_answers_have_the_documented_shape(bench: Bench, body: dict[str, Any], kind: Any) -> None:
    reply = await bench.classify(body)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    TypeAdapter(kind).validate_json(reply.content, strict=True, extra="forbid")


async def test_labels_beyond_ascii_survive(bench: Bench) -> None:
    reply = await bench.classify({"adapter": "acme/topics", "inputs": "x", "top_k": None})
    assert {pair["label"] for pair in reply.json()["results"][0]["scores"]} == {"Sport", "Gesundheit ✓"}


async def test_headers_name_the_only_adapter(bench: Bench) -> None:
    reply = await bench.classify(GOOD)
    assert reply.headers["x-adapter-id"] == "sst2"
    assert reply.headers["x-adapter-version"] == "1"
    assert reply.headers["x-adapter-sha256"] == reply.json()["sha256"][:12]


async def test_headers_name_no_adapter_where_there_are_several(bench: Bench) -> None:
    reply = await bench.classify({"adapters": ["sst2", "acme/topics"], "inputs": "x"})
    assert not [name for name in reply.headers if name.startswith("x-adapter")]


async def test_server_timing_has_the_stages_and_the_total(bench: Bench) -> None:
    reply = await bench.classify(GOOD)
    stages = [entry.strip().split(";dur=") for entry in reply.headers["server-timing"].split(",")]
    assert [name for name, _ in stages] == ["tokenize", "queue", "forward", "total"]
    assert all(float(milliseconds) >= 0 for _, milliseconds in stages)


async def test_a_missing_content_type_counts_as_json(bench: Bench) -> None:
    assert (await bench.client.post("/v1/classify", content=json.dumps(GOOD).encode())).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "MALFORMED_BODY"),
        (b"{", 400, "MALFORMED_BODY"),
        (b"\xff", 400, "MALFORMED_BODY"),
        (b'{"adapter": "sst2", "inputs": ["\\ud800"]}', 400, "MALFORMED_BODY"),
        (b'{"adapter": "sst2", "adapter": "sst2", "inputs": ["x"]}', 400, "MALFORMED_BODY"),
        (b'{"adapter": "sst2", "inputs": ["x"], "top_k": NaN}', 400, "MALFORMED_BODY"),
        (b"[" * 100_000, 400, "MALFORMED_BODY"),
        ([], 422, "INVALID_REQUEST"),
        ({}, 422, "INVALID_REQUEST"),
        ({"adapter": "sst2", "inputs": []}, 422, "INVALID_REQUEST"),
        ({"adapter": "sst2", "inputs": ["x"] * 129}, 422, "INVALID_REQUEST"),
        ({"adapter": "sst2", "inputs": ["x"], "mode": 1}, 422, "INVALID_REQUEST"),
        ({"adapter": "../sst2", "inputs": ["x"]}, 422, "INVALID_REQUEST"),
        ({"adapter": "sst2", "inputs": [" "]}, 422, "BLANK_TEXT"),
        ({"adapter": "sst2", "inputs": ["x" * 20_001]}, 422, "TEXT_TOO_LARGE"),
        ({"adapter": "stsb", "inputs": ["x"]}, 422, "MISSING_PAIR"),
        ({"adapter": "nope", "inputs": ["x"]}, 404, "ADAPTER_NOT_FOUND"),
        ({"adapter": "sst2@9", "inputs": ["x"]}, 404, "VERSION_NOT_FOUND"),
        ({"adapter": "sst2", "inputs": ["x"], "min_generation": 99}, 503, "NOT_READY"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "BODY_TOO_LARGE"),
    ],
)
async def test_bad_calls_have_their_status_and_code(bench: Bench, body: Any, status: int, code: str) -> None:
    reply = await bench.classify(body)
    assert (reply.status_code, code_of(reply)) == (status, code)
    assert reply.headers["x-error-message"].startswith(code)
    assert (await bench.classify(GOOD)).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/octet-stream"])
async def test_another_content_type_is_415(bench: Bench, content_type: str) -> None:
    assert (await bench.classify(GOOD, **{"content-type": content_type})).status_code == 415


async def test_a_chunked_body_over_the_cap_is_413(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65_536

    reply = await bench.client.post("/v1/classify", content=chunks())
    assert (reply.status_code, code_of(reply)) == (413, "BODY_TOO_LARGE")


async def test_a_body_of_the_cap_is_read(bench: Bench) -> None:
    body = json.dumps(GOOD).encode().ljust(MAX_BODY_BYTES)
    assert (await bench.classify(body)).status_code == 200


async def test_input_is_never_echoed(bench: Bench) -> None:
    secret = "s3cr3t" * 5000
    for body in (
        {"adapter": secret, "inputs": ["x"]},
        {"adapter": "sst2", "inputs": [{"text": "x", secret: 1}]},
        {"adapter": "sst2", "inputs": [secret]},
        {"adapter": "sst2", "inputs": "x", "top_k": secret},
        {secret: secret},
        secret,
    ):
        reply = await bench.classify(body)
        assert 400 <= reply.status_code < 500
        assert len(reply.content) < 1500
        assert reply.text.count("s3cr3t") <= 2 * 11  # 64 characters, in message and param


async def test_a_full_queue_is_429_with_retry_after(bench: Bench) -> None:
    bench.engine.gate.clear()
    body = {"adapter": "sst2", "inputs": ["x"] * 100}
    tasks = [asyncio.create_task(bench.classify(body)) for _ in range(8)]
    while not any(task.done() for task in tasks):
        await asyncio.sleep(0.001)
    bench.engine.gate.set()
    replies = await asyncio.gather(*tasks)
    refused = [reply for reply in replies if reply.status_code != 200]
    assert {reply.status_code for reply in refused} == {429}
    assert {int(reply.headers["retry-after"]) for reply in refused} <= {1, 2, 3}
    assert refused[0].json()["error"]["limit"] == 300


async def test_x_timeout_s_is_the_deadline(bench: Bench) -> None:
    bench.engine.gate.clear()
    started_s = time.monotonic()
    reply = await bench.classify(GOOD, **{"x-timeout-s": "0.05"})
    assert (reply.status_code, code_of(reply)) == (504, "DEADLINE_EXCEEDED")
    assert time.monotonic() - started_s < 1


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "nan", "inf", "1e3", "", "x", "1,5", "0x10", "٣", "9" * 50])
async def test_x_timeout_s_that_is_no_positive_number_is_422(bench: Bench, value: str) -> None:
    reply = await bench.client.post("/v1/classify", json=GOOD, headers=[(b"x-timeout-s", value.encode())])
    assert (reply.status_code, code_of(reply)) == (422, "INVALID_REQUEST")


@pytest.mark.parametrize("value", ["0.5", "20", "999999999"])
async def test_x_timeout_s_of_any_length_passes(bench: Bench, value: str) -> None:
    assert (await bench.classify(GOOD, **{"x-timeout-s": value})).status_code == 200


async def test_an_engine_that_fails_is_503(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.failing = set(bench.engine.adapters)
    reply = await bench.classify(GOOD)
    assert (reply.status_code, code_of(reply)) == (503, "ENGINE_FAILED")
    assert "planted" not in reply.text


async def test_a_server_that_stops_is_503(bench: Bench) -> None:
    await bench.service.stop(grace_s=1)
    reply = await bench.classify(GOOD)
    assert (reply.status_code, code_of(reply)) == (503, "NOT_READY")


async def test_many_calls_at_once_each_get_their_own_answer(bench: Bench) -> None:
    texts = [f"text number {number}" for number in range(100)]
    alone = [(await bench.classify({"adapter": "sst2", "inputs": text})).json() for text in texts]
    crowd = await asyncio.gather(*[bench.classify({"adapter": "sst2", "inputs": text}) for text in texts])
    assert [reply.json() for reply in crowd] == alone


# ---- operations ----------------------------------------------------------------------------------------------------


async def test_healthz_says_the_process_is_up_whatever_else_is(bench: Bench) -> None:
    bench.ready = False
    await bench.service.stop(grace_s=1)
    reply = await bench.client.get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_readyz_is_200_where_the_probe_answers(bench: Bench) -> None:
    reply = await bench.client.get("/readyz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("ready", [False, NotReadyError("x"), OverloadedError("x")])
async def test_readyz_is_503_where_it_does_not(bench: Bench, ready: bool | Exception) -> None:
    bench.ready = ready
    reply = await bench.client.get("/readyz")
    assert (reply.status_code, code_of(reply)) == (503, "NOT_READY")
    assert reply.headers["content-type"] == "application/problem+json"
    assert "retry-after" in reply.headers


async def test_readyz_is_503_where_the_probe_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app.READY_WITHIN_S", 0.01)

    async def hang() -> bool:
        await asyncio.sleep(60)
        return True

    app = make_app(
        bench.service,
        info=dict,
        is_ready=hang,
        collect_metrics=bench.collect_metrics,
        admin_openapi=dict,
        adapters=StubAdapters(bench.resolver),
        admin=StubAdmin(),
        collect_tallies=bench.collect_tallies,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/readyz")).status_code == 503


async def test_readyz_is_503_as_soon_as_the_service_stops(bench: Bench) -> None:
    await bench.service.stop(grace_s=1)
    assert (await bench.client.get("/readyz")).status_code == 503


async def test_info_is_what_the_replica_says(bench: Bench) -> None:
    assert (await bench.client.get("/v1/info")).json() == INFO


async def test_metrics_count_calls_by_route_and_status(bench: Bench) -> None:
    await bench.classify(GOOD)
    await bench.classify({})
    await bench.client.get("/nowhere")
    await bench.classify(b" " * (MAX_BODY_BYTES + 1))
    reply = await bench.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.text.splitlines()
    assert 'adakron_requests_total{code="200",route="/v1/classify"} 1.0' in lines
    assert 'adakron_requests_total{code="422",route="/v1/classify"} 1.0' in lines
    assert 'adakron_requests_total{code="404",route="other"} 1.0' in lines
    assert 'adakron_requests_total{code="413",route="other"} 1.0' in lines
    assert "adakron_rows_total 1.0" in lines


ROUTES = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/info"), ("POST", "/v1/classify")]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT"])
@pytest.mark.parametrize(("allowed", "path"), ROUTES)
async def test_other_methods_are_405_with_allow(bench: Bench, method: str, allowed: str, path: str) -> None:
    if method == allowed:
        return
    reply = await bench.client.request(method, path)
    assert reply.status_code == 405
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/classify/", "/V1/classify", "/v1//classify", "/", "/v1"])
async def test_near_misses_are_404_and_no_redirect(bench: Bench, path: str) -> None:
    assert (await bench.client.get(path)).status_code == 404


# ---- documentation -------------------------------------------------------------------------------------------------


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        if not path.startswith("/v1/adapters"):  # of the admin application, which a stub stands for
            for operation in methods.values():
                yield path, operation


async def test_docs_are_served(bench: Bench) -> None:
    reply = await bench.client.get("/docs")
    assert reply.status_code == 200
    assert "swagger" in reply.text


async def test_openapi_has_the_routes_of_both_applications(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    hidden = {*FRAMEWORK_ROUTES, "/docs", "/docs/{file}"}
    served = {path for _, path in scopes_of(bench.app, FRAMEWORK_ROUTES)} - hidden
    assert set(document["paths"]) == served | {"/v1/adapters"}
    assert served >= {path for _, path in ROUTES} | {"/classify", "/v2/models/{model}/infer"}
    assert "Listed" in document["components"]["schemas"]


async def test_every_reference_in_openapi_leads_somewhere(bench: Bench) -> None:
    text = (await bench.client.get("/openapi.json")).text
    document = json.loads(text)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names
    assert names <= set(document["components"]["schemas"])


async def test_every_status_in_openapi_has_an_example(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    for path, operation in operations(document):
        assert operation["responses"], path
        for status, response in operation["responses"].items():
            for content in response["content"].values():
                assert content.get("examples") or content.get("example"), (path, status)


async def test_every_status_a_docstring_names_is_in_openapi(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    for path, operation in operations(document):
        named = operation["description"].split("Statuses: ")[1].rstrip(".").split(", ")
        assert sorted(named) == sorted(operation["responses"]), path


def test_examples_of_requests_are_requests() -> None:
    named = examples.CLASSIFY_REQUEST["requestBody"]["content"]["application/json"]["examples"]
    for example in named.values():
        parse_classify_request(example["value"])


def test_examples_of_answers_are_answers() -> None:
    kinds = TypeAdapter(OneAdapterAnswer | ManyAdaptersAnswer | ItemsAnswer)
    for example in examples.CLASSIFY[200]["content"]["application/json"]["examples"].values():
        kinds.validate_python(example["value"], strict=True, extra="forbid")


async def test_x_route_key_reaches_the_resolver(bench: Bench) -> None:
    await bench.classify(GOOD, **{"x-route-key": "customer 7"})
    await bench.classify(GOOD)
    assert bench.resolver.route_keys[-2:] == ["customer 7", None]
