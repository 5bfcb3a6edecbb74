"""MAdaKron from its first step to an answer over HTTP: what is served is the average of the experts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import set_seed

from adakron import Adapter, Engine, Row
from adakron.module import ExpertLinear
from adakron.training.classifier import forward_texts
from adakron.training.data import load_task
from adakron.training.loop import Schedule, fit
from adakron.training.recipe import Recipe
from adakron.training.run import exported, golden_texts, new_adapter
from tests.adakron.training.labelled import save_task
from tests.loadtests.in_process import in_process_server
from tests.tiny import tiny_backbone

TEXTS = ["the good word", "down", "no people my over know water than call", "hot hot"]


@pytest.mark.parametrize(("method", "drawn"), [("madakron-partial", ("a2",)), ("madakron-full", ("a1", "a2"))])
async def test_trained_experts_are_served_as_their_average(method, drawn, tmp_path: Path) -> None:
    data = load_task(str(save_task(tmp_path / "weather", "single", 48, 16)))
    backbone, lr = tiny_backbone(), 0.05
    recipe = Recipe("w", method=method, experts=3, bottleneck=12, max_length=24, dtype="float32", lr=lr, epochs=2)
    model = new_adapter(backbone, recipe, data)
    fit(model, backbone, data, recipe, Schedule(lr, recipe.epochs, 0.0), "accuracy")
    for module in model.layer_adapters():
        for name in drawn:
            linear = getattr(module, name)
            assert isinstance(linear, ExpertLinear)
            assert (linear.weight[0] - linear.weight[1]).abs().max() > 0.1  # an average of equals would prove nothing
    averaged = forward_texts(model, backbone, TEXTS, recipe.max_length)
    set_seed(1)
    first_draw = forward_texts(model.train(), backbone, TEXTS, recipe.max_length)
    assert np.abs(first_draw - averaged).max() > 1e-3

    fresh = tiny_backbone()
    adapter, _ = exported(model, recipe, data, golden_texts(fresh, data, None), fresh)
    adapter.write(tmp_path / "artefact")
    file = tmp_path / "artefact" / "adapter_model.safetensors"
    assert not any("expert" in name or tensor.dim() > 2 for name, tensor in Adapter.from_file(file).tensors.items())

    engine = Engine(fresh, torch.device("cpu"), torch.float32, kernels="eager")
    engine.add("weather", Adapter.from_file(file))
    answers = [result.logits for result in engine.classify([Row("weather", text) for text in TEXTS])]
    tolerance = 1e-5 * max(1.0, float(np.abs(averaged).max()))
    np.testing.assert_allclose(np.stack(answers), averaged, rtol=0, atol=tolerance)

    (tmp_path / "state").mkdir()
    async with in_process_server(tmp_path / "state") as (_, client):
        (await client.put("/v1/adapters/weather", content=file.read_bytes())).raise_for_status()
        reply = await client.post("/v1/classify", json={"adapter": "weather", "inputs": TEXTS, "top_k": None})
    scores = [{entry["label"]: entry["score"] for entry in row["scores"]} for row in reply.json()["results"]]
    served = [[row[name] for name in data.label_names] for row in scores]
    np.testing.assert_allclose(served, torch.tensor(averaged).softmax(-1).numpy(), rtol=0, atol=tolerance)
