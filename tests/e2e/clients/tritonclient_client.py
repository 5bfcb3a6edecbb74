"""tritonclient over HTTP, plain and asyncio."""

import asyncio
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from findings import Findings, raises
from tritonclient.utils import InferenceServerException

found = Findings("tritonclient[http]", version("tritonclient"))
HOST = found.facts["url"].removeprefix("http://")
MODEL = found.facts["adapter"].replace("/", "--")
LABELS = found.facts["labels"]
client = triton.InferenceServerClient(HOST)


def auth() -> dict[str, str]:
    """A new one for each call: the client adds headers of its own to the dictionary that it is given."""
    return {"Authorization": f"Bearer {found.facts['key']}"}


def texts(module: Any = triton, *, binary: bool = True) -> Any:
    tensor = module.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(["free money", "naïve ☃"], dtype=object), binary_data=binary)
    return [tensor]


def is_made(reply: Any, number: int = 2) -> bool:
    scores, label = reply.as_numpy("scores"), reply.as_numpy("label")
    assert scores.shape == (2, 2)
    assert scores.dtype == np.float32
    assert reply.get_response()["model_version"] == str(number)
    names = [name if isinstance(name, str) else name.decode() for name in label]  # bytes where they came as such
    return all(found.made(number, name, float(row.max())) for name, row in zip(names, scores, strict=True))


def infer(**options: Any) -> Any:
    return client.infer(MODEL, options.pop("inputs", None) or texts(), headers=auth(), **options)


with found.operation("is_server_live, is_server_ready"):
    assert client.is_server_live(headers=auth())
    assert client.is_server_ready(headers=auth())

with found.operation("is_model_ready, with a version too"):
    assert client.is_model_ready(MODEL, headers=auth())
    assert client.is_model_ready(MODEL, "1", headers=auth())
    assert not client.is_model_ready(MODEL, "9", headers=auth())
    assert not client.is_model_ready("clients--nobody", headers=auth())

with found.operation("get_server_metadata"):
    assert "binary_tensor_data" in client.get_server_metadata(headers=auth())["extensions"]

with found.operation("get_model_metadata, with a version too"):
    assert client.get_model_metadata(MODEL, headers=auth())["versions"] == ["1", "2"]
    assert client.get_model_metadata(MODEL, "1", headers=auth())["inputs"][0]["datatype"] == "BYTES"

with found.operation("get_model_config"):
    assert client.get_model_config(MODEL, headers=auth())["max_batch_size"] == 128

with found.operation("infer, binary"):
    assert is_made(infer())

with found.operation("infer, JSON"):
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in ("scores", "label")]
    assert is_made(infer(inputs=texts(binary=False), outputs=outputs))

with found.operation("infer, one output binary and one JSON"):
    outputs = [triton.InferRequestedOutput("scores"), triton.InferRequestedOutput("label", binary_data=False)]
    assert is_made(infer(outputs=outputs))

with found.operation("infer, request compressed with gzip and with deflate"):
    for algorithm in ("gzip", "deflate"):
        assert is_made(infer(request_compression_algorithm=algorithm))

with found.operation("infer, reply compression offered"):
    assert is_made(infer(response_compression_algorithm="gzip"))

with found.operation("infer, request_id, priority and timeout"):
    assert infer(request_id="mine", priority=1, timeout=10_000_000).get_response()["id"] == "mine"

with found.operation("infer, classification"):
    rows = infer(outputs=[triton.InferRequestedOutput("scores", class_count=2)]).as_numpy("scores")
    assert rows.shape == (2, 2)
    value, index, label = rows[0][0].decode().split(":", 2)
    assert found.made(2, label, float(value))
    assert LABELS[int(index)] == label

with found.operation("infer, parameters of our own"):
    reply = infer(parameters={"top_k": 1, "function_to_apply": "softmax", "adapter_version": 1})
    assert found.made(1, reply.as_numpy("labels")[0][0].decode(), float(reply.as_numpy("scores")[0][0]))

with found.operation("infer of a version"):
    assert is_made(infer(model_version="1"), 1)

with found.operation("infer, the static encoder and parser of bodies"):
    body, length = triton.InferenceServerClient.generate_request_body(texts())
    assert length is not None
    assert b"free money" in body

with found.operation("async_infer"):
    assert is_made(client.async_infer(MODEL, texts(), headers=auth()).get_result())

with found.operation("aio: infer"):

    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(HOST) as opened:
            return await opened.infer(MODEL, texts(triton_aio), headers=auth())

    assert is_made(asyncio.run(ask()))

with found.operation("get_model_repository_index"):
    index = {(row["name"], row["version"]): row["state"] for row in client.get_model_repository_index(headers=auth())}
    assert index[MODEL, "1"] == index[MODEL, "2"] == "READY"

with found.operation("unload_model, load_model: the version that answered is back"):
    client.unload_model(MODEL, headers=auth())
    assert not client.is_model_ready(MODEL, headers=auth())
    with raises(InferenceServerException, "active"):
        infer()
    client.load_model(MODEL, headers=auth())
    assert is_made(infer())

with found.operation("load_model of a version"):
    client.load_model(MODEL, config=json.dumps({"version_policy": {"specific": {"versions": [1]}}}), headers=auth())
    assert is_made(infer(), 1)
    client.load_model(MODEL, config=json.dumps({"version_policy": {"specific": {"versions": [2]}}}), headers=auth())

with found.operation("load_model with a file"):
    name, artefact = f"{MODEL}-loaded", Path(found.facts["artefact"]).read_bytes()
    client.load_model(name, config="{}", files={"file:1/adapter_model.safetensors": artefact}, headers=auth())
    label = client.infer(name, texts(), headers=auth()).as_numpy("label")
    assert label[0].decode() == found.facts["versions"]["2"]["label"]

with found.operation("get_inference_statistics"):
    (mine,) = client.get_inference_statistics(MODEL, "2", headers=auth())["model_stats"]
    assert mine["name"] == MODEL
    assert mine["inference_count"] >= 10
    assert mine["inference_stats"]["success"]["ns"] > 0
    assert client.get_inference_statistics(headers=auth())["model_stats"]

with (
    found.operation("an unknown model: the exception says which one was meant"),
    raises(InferenceServerException, "404", "did you mean", found.facts["adapter"]),
):
    client.infer(f"{MODEL}x", texts(), headers=auth())

with found.operation("a file that is none: the exception says why"), raises(InferenceServerException, "422", "pickle"):
    client.load_model(MODEL, config="{}", files={"file:1/adapter_model.safetensors": b"\x80\x04junk"}, headers=auth())

client.close()
found.print()
