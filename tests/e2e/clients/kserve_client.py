"""kserve's InferenceRESTClient, protocol v2."""

import asyncio
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
from findings import Findings, raises
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

found = Findings("kserve", version("kserve"))
URL = found.facts["url"]
MODEL = found.facts["adapter"].replace("/", "--")


def auth() -> dict[str, str]:
    """A new one for each call: the client adds headers of its own to the dictionary that it is given."""
    return {"Authorization": f"Bearer {found.facts['key']}"}


def texts(*, binary: bool) -> list[InferInput]:
    tensor = InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(["free money", "naïve"], dtype=object), binary_data=binary)
    return [tensor]


def is_made(reply: Any) -> bool:
    outputs = {output.name: output for output in reply.outputs}
    scores = outputs["scores"].as_numpy()
    label = outputs["label"].as_numpy().reshape(-1)[0]
    text = label.decode() if isinstance(label, bytes) else str(label)
    return scores.shape == (2, 2) and found.made(2, text, float(scores[0].max()))


async def main() -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(*, binary: bool, model: str = MODEL) -> Any:
        request = InferRequest(model, texts(binary=binary), request_id="k1")
        return await client.infer(URL, request, model_name=model, headers=auth())

    with found.operation("is_server_live, is_server_ready"):
        assert await client.is_server_live(URL, headers=auth())
        assert await client.is_server_ready(URL, headers=auth())
    with found.operation("is_model_ready"):
        assert await client.is_model_ready(URL, MODEL, headers=auth())
    with found.operation("infer, JSON"):
        reply = await infer(binary=False)
        assert reply.id == "k1"
        assert is_made(reply)
    with found.operation("infer, binary"):
        assert is_made(await infer(binary=True))
    with (
        found.operation("an unknown model: the exception says which one was meant"),
        raises(httpx.HTTPStatusError, "did you mean", found.facts["adapter"]),
    ):
        await infer(binary=False, model=f"{MODEL}x")
    await client.close()


asyncio.run(main())
found.print()
