"""huggingface_hub's InferenceClient, one base URL an adapter."""

import asyncio

import huggingface_hub
from findings import Findings, raises
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

found = Findings("huggingface_hub", huggingface_hub.__version__)
KEY = found.facts["key"]


def base(suffix: str = "") -> str:
    return f"{found.facts['url']}/adapters/{found.facts['adapter']}{suffix}"


def client(suffix: str = "") -> InferenceClient:
    return InferenceClient(model=base(suffix), token=KEY, provider="hf-inference")


with found.operation("text_classification"):
    rows = client().text_classification("free money")
    assert len(rows) == 2
    assert found.made(2, rows[0].label, rows[0].score)
    assert abs(sum(row.score for row in rows) - 1) < 1e-5

with found.operation("text_classification, the base URL alone, without a provider"):
    rows = InferenceClient(base("/"), token=KEY).text_classification("free money")
    assert found.made(2, rows[0].label, rows[0].score)

with found.operation("text_classification with top_k"):
    assert len(client().text_classification("free money", top_k=1)) == 1

with found.operation("text_classification with function_to_apply"):
    plain = client().text_classification("free money", function_to_apply="softmax")
    sigmoid = client().text_classification("free money", function_to_apply="sigmoid")
    logits = client().text_classification("free money", function_to_apply="none")
    assert found.made(2, plain[0].label, plain[0].score)
    assert abs(sum(row.score for row in sigmoid) - 1) > 1e-3
    assert [row.label for row in logits] == [row.label for row in plain]

with found.operation("text_classification of a pinned version"):
    rows = client("@1").text_classification("free money")
    assert found.made(1, rows[0].label, rows[0].score)

with found.operation("AsyncInferenceClient.text_classification"):

    async def ask() -> list[huggingface_hub.TextClassificationOutputElement]:
        async with AsyncInferenceClient(model=base(), token=KEY, provider="hf-inference") as opened:
            return list(await opened.text_classification("free money"))

    rows = asyncio.run(ask())
    assert found.made(2, rows[0].label, rows[0].score)

with found.operation("get_endpoint_info"):
    assert client().get_endpoint_info()["model_id"] == found.facts["adapter"]

with found.operation("health_check"):
    assert client().health_check()
    assert not client("-unknown").health_check()

with (
    found.operation("an unknown adapter: the exception says which one was meant"),
    raises(HfHubHTTPError, "did you mean", found.facts["adapter"]),
):
    client("x").text_classification("free money")

with found.operation("an invalid text: the exception says what is wrong"), raises(HfHubHTTPError, "blank"):
    client().text_classification(" ")

found.print()
