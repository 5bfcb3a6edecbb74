"""Checkpoints as the authors' code writes them, made here, and what they compute: plain numpy loops, no shared code."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adakron import Backbone

PARTS = {"GLUE": ("MoA_A1", "MoA_A2"), "NLG": ("MoA_A1", "MoA_A")}  # r / 4 wide, 4 wide


def make(backbone: Backbone, code: str, *, r: int = 12, experts: int = 1, labels: int = 3, scores: bool = True) -> dict:
    """The whole model's state dict: frozen encoder, ExpertSoup of every layer, head."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> torch.Tensor:
        return 0.4 * torch.randn(shape, generator=generator)

    d, root = backbone.hidden_size, backbone.model.base_model_prefix
    state = {f"{root}.{name}": tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    state[f"{root}.embeddings.position_ids"] = torch.arange(44)[None]
    wide, narrow = PARTS[code]
    for layer in range(backbone.num_hidden_layers):
        for part, rows, columns in ((wide, r // 4, d), (narrow, 4, d), ("MoA_B", d, r)):
            name = f"{root}.encoder.layer.{layer}.output.ExpertSoup.{part}"
            for expert in range(1 if part == "MoA_B" else experts):
                state[f"{name}.deepspeed_experts.{expert}.weight"] = draw(rows, columns)
                state[f"{name}.deepspeed_experts.{expert}.bias"] = draw(rows)
            if scores:
                state[f"{name}.expert_score_weight"] = draw(1 if part == "MoA_B" else experts)
    if root == "roberta":
        state |= {"classifier.dense.weight": draw(d, d), "classifier.dense.bias": draw(d)}
        state |= {"classifier.out_proj.weight": draw(labels, d), "classifier.out_proj.bias": draw(labels)}
    else:
        state |= {"classifier.weight": draw(labels, d), "classifier.bias": draw(labels)}
    return state


def save(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def _affine(state: dict, name: str, x: list[float]) -> list[float]:
    """The average of a part's experts, applied: weights e^score / sum of e^score."""
    experts = sorted(int(key.split(".")[-2]) for key in state if key.startswith(f"{name}.") and key.endswith(".weight"))
    scores = state[f"{name}.expert_score_weight"].tolist() if f"{name}.expert_score_weight" in state else None
    shares = [1.0] * len(experts) if scores is None else [math.exp(score) for score in scores]
    y = [0.0] * len(state[f"{name}.deepspeed_experts.0.bias"])
    for expert in experts:
        weight = state[f"{name}.deepspeed_experts.{expert}.weight"].double().tolist()
        bias = state[f"{name}.deepspeed_experts.{expert}.bias"].double().tolist()
        for row in range(len(y)):
            total = bias[row]
            for column in range(len(x)):
                total += weight[row][column] * x[column]
            y[row] += shares[expert] / sum(shares) * total
    return y


def layer_output(state: dict, backbone: Backbone, code: str, layer: int, x: np.ndarray) -> np.ndarray:
    """One token through the adapter of one layer: x [d] -> [d], element by element."""
    name = f"{backbone.model.base_model_prefix}.encoder.layer.{layer}.output.ExpertSoup"
    values = [float(value) for value in x]
    wide, narrow = (_affine(state, f"{name}.{part}", values) for part in PARTS[code])
    z = []
    for first in narrow if code == "GLUE" else wide:  # the GLUE code has the 4-wide factor first, the NLG code last
        for second in wide if code == "GLUE" else narrow:
            product = first * second
            z.append(0.5 * product * (1 + math.erf(product / math.sqrt(2))))
    return np.array([value + up for value, up in zip(values, _affine(state, f"{name}.MoA_B", z), strict=True)])


def logits(state: dict, backbone: Backbone, code: str, ids: list[int]) -> np.ndarray:
    """The whole model for one text: the transformers encoder with the loops above at each layer, then the head."""
    handles = []
    for layer, module in enumerate(backbone.model.encoder.layer):

        def adapt(site: Any, inputs: Any, x: torch.Tensor, layer: int = layer) -> torch.Tensor:
            tokens = [layer_output(state, backbone, code, layer, token) for token in x[0].double().numpy()]
            return torch.from_numpy(np.stack(tokens)).to(x.dtype)[None]

        handles.append(module.output.dense.register_forward_hook(adapt))
    try:
        with torch.no_grad():
            hidden = backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0, 0].double().numpy()
    finally:
        for handle in handles:
            handle.remove()
    own = {name: tensor.double().numpy() for name, tensor in state.items() if tensor.is_floating_point()}
    if "classifier.dense.weight" in own:
        hidden = np.tanh(own["classifier.dense.weight"] @ hidden + own["classifier.dense.bias"])
        return own["classifier.out_proj.weight"] @ hidden + own["classifier.out_proj.bias"]
    pooled = np.tanh(own["bert.pooler.dense.weight"] @ hidden + own["bert.pooler.dense.bias"])
    return own["classifier.weight"] @ pooled + own["classifier.bias"]
