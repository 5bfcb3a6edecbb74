"""The openai client: the listing, and vLLM's routes through its generic calls."""

import asyncio

import openai
from findings import Findings, raises

found = Findings("openai", openai.__version__)
ADAPTER = found.facts["adapter"]
URL = f"{found.facts['url']}/v1"
client = openai.OpenAI(base_url=URL, api_key=found.facts["key"], max_retries=0)


def classify(model: str = ADAPTER, texts: object = ("free money", "naïve")) -> dict:
    return client.post("/classify", body={"model": model, "input": texts}, cast_to=object)


with found.operation("models.list: adapters with their parent"):
    models = {model.id: model for model in client.models.list()}
    assert models[models[ADAPTER].parent].parent is None

with found.operation("models.retrieve"):
    assert client.models.retrieve(ADAPTER).id == ADAPTER

with found.operation("AsyncOpenAI: models.list"):

    async def names() -> set[str]:
        async with openai.AsyncOpenAI(base_url=URL, api_key=found.facts["key"], max_retries=0) as opened:
            return {model.id async for model in opened.models.list()}

    assert ADAPTER in asyncio.run(names())

with found.operation('post("/classify")'):
    rows = classify()["data"]
    assert [row["index"] for row in rows] == [0, 1]
    assert found.made(2, rows[0]["label"], max(rows[0]["probs"]))

with found.operation('post("/classify") of a pinned version'):
    (row,) = classify(f"{ADAPTER}@1", "free money")["data"]
    assert found.made(1, row["label"], max(row["probs"]))

with found.operation('post("/unload_lora_adapter"), post("/load_lora_adapter")'):
    body = {"lora_name": ADAPTER}
    assert "removed" in client.post("/unload_lora_adapter", body=body, cast_to=str)
    assert ADAPTER not in {model.id for model in client.models.list()}
    with raises(openai.NotFoundError, "active"):
        classify()
    assert "added" in client.post("/load_lora_adapter", body=body, cast_to=str)
    with raises(openai.BadRequestError, "loaded"):
        client.post("/load_lora_adapter", body=body, cast_to=str)
    assert found.made(2, classify()["data"][0]["label"], max(classify()["data"][0]["probs"]))

with found.operation("an unknown adapter: NotFoundError with the code and the hint"):
    refusals = []
    try:
        classify(f"{ADAPTER}x")
    except openai.NotFoundError as error:
        refusals.append(error)
    (refusal,) = refusals
    assert refusal.code == "ADAPTER_NOT_FOUND"
    assert ADAPTER in refusal.body["hint"]
    assert refusal.request_id

with found.operation("an invalid text: UnprocessableEntityError"), raises(openai.UnprocessableEntityError, "blank"):
    classify(texts=[" "])

found.print()
