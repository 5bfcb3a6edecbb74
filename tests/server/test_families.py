"""A replica on a backbone of another family: the HTTP application is the same."""

import asyncio
from collections.abc import Collection
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from adakron import Engine, Row
from server import state
from server.data_plane import DataPlane
from server.settings import Settings
from server.tally import Count
from tests.reference import Reference
from tests.server.stub_adapters import StubAdmin
from tests.tiny import FAMILIES, tiny_adapter, tiny_backbone


async def metrics() -> bytes:
    return b""


async def tallies(sha256s: Collection[str] | None) -> dict[str, Count]:
    return {}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
async def test_adapter_of_each_family_answers_over_http(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone(family)
    reference, adapter = Reference(backbone), tiny_adapter(backbone, ("no", "yes", "perhaps"))
    engine = Engine(backbone, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(Engine, "load", lambda *args, **options: engine)
    settings = Settings(state_dir=tmp_path)
    blobs = settings.open_blobs()
    with state.opened(settings.catalogue, blobs) as catalogue:
        with blobs.stage() as staged:
            staged.write(adapter.to_bytes())
            staged.keep()
        catalogue.add_version("acme/x", adapter.sha256, adapter.size_bytes)
    plane = DataPlane.open(settings, "r1", threads=1)
    await plane.start()
    try:
        transport = httpx.ASGITransport(plane.app(metrics, StubAdmin(), tallies))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            texts = ["the word", "how many people were there when the water came down over the place"]
            body = {"adapter": "acme/x", "inputs": texts, "top_k": None}
            answer, ready, info = await asyncio.gather(
                client.post("/v1/classify", json=body), client.get("/readyz"), client.get("/v1/info")
            )
    finally:
        await plane.stop()
    assert (answer.status_code, ready.status_code) == (200, 200)
    assert info.json()["engine"]["family"] == family
    for text, result in zip(texts, answer.json()["results"], strict=True):
        logits = reference.logits(adapter, Row("acme/x", text))
        wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        found = {pair["label"]: pair["score"] for pair in result["scores"]}
        assert [found[name] for name in ("no", "yes", "perhaps")] == pytest.approx(wanted.tolist(), abs=1e-4)
