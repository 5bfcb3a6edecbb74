"""curl, on one route of each dialect."""

import json
import subprocess
from pathlib import Path
from typing import Any

from findings import Findings

VERSION = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
found = Findings("curl", VERSION)
ADAPTER = found.facts["adapter"]
MODEL = ADAPTER.replace("/", "--")


def curl(path: str, *options: str) -> Any:
    url = f"{found.facts['url']}{path}"
    key = ["-H", f"authorization: Bearer {found.facts['key']}"]
    done = subprocess.run(["curl", "-sS", "--fail-with-body", url, *key, *options], capture_output=True, check=True)
    return json.loads(done.stdout) if done.stdout.startswith((b"{", b"[")) else done.stdout.decode()


def send(path: str, body: object, *options: str) -> Any:
    return curl(path, "-H", "content-type: application/json", "-d", json.dumps(body), *options)


with found.operation("POST /v1/classify"):
    (row,) = send("/v1/classify", {"adapter": ADAPTER, "inputs": "free money"})["results"]
    assert found.made(2, row["label"], row["score"])

with found.operation("POST /adapters/{adapter}"):
    ((best, _),) = send(f"/adapters/{ADAPTER}", {"inputs": "free money"})
    assert found.made(2, best["label"], best["score"])

with found.operation("POST /adapters/{adapter}/predict"):
    best, _ = send(f"/adapters/{ADAPTER}@1/predict", {"inputs": "free money"})
    assert found.made(1, best["label"], best["score"])

with found.operation("GET /adapters/{adapter}/info, /health"):
    labels = curl(f"/adapters/{ADAPTER}/info")["model_type"]["classifier"]["id2label"]
    assert list(labels.values()) == found.facts["labels"]
    assert curl(f"/adapters/{ADAPTER}/health")

with found.operation("POST /v2/models/{model}/infer, JSON"):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["free money"]}
    outputs = {
        output["name"]: output["data"] for output in send(f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})["outputs"]
    }
    assert found.made(2, outputs["label"][0], max(outputs["scores"]))

with found.operation("POST /v2/models/{model}/infer, the body as one text"):
    reply = curl(
        f"/v2/models/{MODEL}/versions/1/infer",
        *["-H", "Inference-Header-Content-Length: 0", "-H", "content-type: application/octet-stream"],
        *["--data-binary", "free money"],
    )
    outputs = {output["name"]: output["data"] for output in reply["outputs"]}
    assert found.made(1, outputs["label"][0], max(outputs["scores"]))

with found.operation("POST /classify"):
    (row,) = send("/classify", {"model": ADAPTER, "input": "free money"})["data"]
    assert found.made(2, row["label"], max(row["probs"]))

with found.operation("GET /v1/models"):
    assert ADAPTER in {card["id"] for card in curl("/v1/models")["data"]}

with found.operation("PUT /v1/adapters/{name}"):
    assert curl(f"/v1/adapters/{ADAPTER}-put", "-T", str(Path(found.facts["artefact"])))["version"] == 1

found.print()
