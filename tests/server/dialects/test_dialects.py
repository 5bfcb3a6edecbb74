"""What holds for all of them: every route has a scope, examples are true, errors look as their prefix needs."""

from typing import Any

import pytest

from server.access.gate import scopes_of
from server.app import FRAMEWORK_ROUTES
from server.dialects import BODIES, bounds_of
from server.schemas import MAX_BODY_BYTES
from tests.server.dialects.conftest import Bench
from tests.server.stub_engine import config_of

NATIVE = {"/v1/classify", "/v1/info", "/healthz", "/readyz", "/metrics"}


def test_only_health_is_public_and_every_change_needs_admin() -> None:
    scopes = {key: needed for key, needed in scopes_of(Bench().app, FRAMEWORK_ROUTES).items() if key[1] not in NATIVE}
    public = {path for (_, path), needed in scopes.items() if needed is None}
    assert public - {"/docs", "/docs/{file}"} == {"/v2/health/live", "/v2/health/ready"}
    changes = {path for (_, path), needed in scopes.items() if needed is not None and needed.scope == "admin"}
    assert {path.rpartition("/")[2] for path in changes} == {
        "load",
        "unload",
        "load_lora_adapter",
        "unload_lora_adapter",
    }


def test_examples_of_bodies_are_bodies() -> None:
    forms = {form.__name__: form for form in BODIES}
    checked = set()
    for methods in Bench().app.openapi()["paths"].values():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            form = forms.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2])
            for example in content.get("examples", {}).values() if form else ():
                form.model_validate(example["value"])
                checked.add(form.__name__)
    assert checked == forms.keys()


@pytest.mark.parametrize(
    ("path", "is_compressed", "is_large"),
    [
        ("/v2/models/x/infer", True, False),
        ("/v2/models/x/versions/1/infer", True, False),
        ("/v2/repository/models/x/load", False, True),
        ("/v2/repository/models/x/unload", False, False),
        ("/v2/repository/index", False, False),
        ("/adapters/x", False, False),
        ("/v1/classify", False, False),
    ],
)
def test_bounds_differ_where_they_must(path: str, is_compressed: bool, is_large: bool) -> None:
    bounds = bounds_of(path)
    assert (bounds is not None and bounds.may_be_compressed) is is_compressed
    assert (bounds is not None and bounds.max_body_bytes > MAX_BODY_BYTES) is is_large


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/nope/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
        ("/v2/nowhere", {}),
        ("/v2/models/x/infer", b"{"),
        ("/adapters/nope", {"inputs": "a"}),
        ("/adapters/nope/predict", {"inputs": "a"}),
        ("/nowhere", {}),
        ("/classify", {"model": "nope", "input": "a"}),
        ("/v1/nowhere", {}),
        ("/v1/load_lora_adapter", b"{"),
    ],
)
async def test_errors_have_the_form_of_their_prefix(bench: Bench, path: str, body: Any) -> None:
    reply = await bench.post(path, body)
    error = reply.json()["error"]
    assert reply.status_code in (400, 404)
    assert reply.headers["x-request-id"]
    assert reply.headers["x-error-message"]
    if path.startswith("/v2"):
        assert (reply.headers["content-type"], type(error)) == ("application/json", str)
    elif path.startswith("/v1") or path == "/classify":
        assert (reply.headers["content-type"], type(error["message"])) == ("application/json", str)
    else:
        assert (reply.headers["content-type"], type(error)) == ("application/problem+json", str)


async def test_an_adapter_that_abstains_has_no_label_where_a_protocol_has_room_for_none(bench: Bench) -> None:
    """vLLM's label may be null; the others have no word for it, and give the best label with its score."""
    bench.resolver.add("shy", config_of(threshold=0.999))
    [native] = await bench.native("shy", "a text")
    assert (native["label"], native["abstained"]) == (None, True)
    best = native["scores"][0]
    [vllm] = (await bench.post("/classify", {"model": "shy", "input": "a text"})).json()["data"]
    assert (vllm["label"], max(vllm["probs"])) == (None, best["score"])
    [[hugging_face]] = (await bench.post("/adapters/shy", {"inputs": "a text", "parameters": {"top_k": 1}})).json()
    assert hugging_face == best
    assert (await bench.post("/adapters/shy/predict", {"inputs": "a text"})).json()[0] == best
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a text"]}
    outputs = (await bench.post("/v2/models/shy/infer", {"inputs": [text]})).json()["outputs"]
    assert next(output["data"] for output in outputs if output["name"] == "label") == [best["label"]]
