"""The oracle: slow, plain, independent of the fast paths. It never trims, casts or tolerates.

`kron_forward` is the equation with numpy in float64, row by row. `reference_logits` is the transformers model with the
adapter attached by hooks, one row at a time, so it shares neither packing nor slots nor heads with the engine.
"""

import math

import numpy as np
import torch
from transformers import AutoModel

from adakron import AdaKron, Adapter, Backbone, Row
from adakron.attachment import attach_trained, detach


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel()]).reshape(x.shape)


def kron_forward(x: np.ndarray, tensors: dict[str, np.ndarray], order: str) -> np.ndarray:
    """One token: x [D], tensors a1, a2, up with .weight and .bias, all float64 -> y [D]."""
    u = tensors["a2.weight"] @ x + tensors["a2.bias"]
    v = tensors["a1.weight"] @ x + tensors["a1.bias"]
    z = gelu(np.kron(u, v) if order == "a2_a1" else np.kron(v, u))
    return x + tensors["up.weight"] @ z + tensors["up.bias"]


def kron_forward_layer(adapter: Adapter, layer: int, x: torch.Tensor) -> np.ndarray:
    """One layer of an adapter, token by token: x [T, D] -> [T, D] float64."""
    prefix = f"layers.{layer}."
    tensors = {n.removeprefix(prefix): t.double().numpy() for n, t in adapter.tensors.items() if n.startswith(prefix)}
    return np.stack([kron_forward(token, tensors, adapter.config.order) for token in x.double().numpy()])


def clone_model(backbone: Backbone) -> torch.nn.Module:
    """A private copy of the encoder, in float32, without hooks."""
    copy = AutoModel.from_config(backbone.model.config)
    copy.load_state_dict({name: tensor.float() for name, tensor in backbone.model.state_dict().items()})
    return copy.eval()


class Reference:
    """Answers rows one at a time with the transformers model."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.model = backbone, clone_model(backbone)

    def logits(self, adapter: Adapter, row: Row) -> np.ndarray:
        config = adapter.config
        modules = []
        for layer in range(config.first_layer, config.num_hidden_layers):
            module = AdaKron(config.hidden_size, config.adakron)
            prefix = f"layers.{layer}."
            module.load_state_dict(
                {name.removeprefix(prefix): t.float() for name, t in adapter.tensors.items() if name.startswith(prefix)}
            )
            modules.append(module)
        attach_trained(self.model, modules, config.first_layer)
        try:
            with torch.no_grad():
                pooled = self._pooled(config.pooling, row, config.max_length)
        finally:
            detach(self.model)
        tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
        if config.head == "roberta":
            pooled = torch.tanh(tensors["head.dense.weight"] @ pooled + tensors["head.dense.bias"])
            return (tensors["head.out_proj.weight"] @ pooled + tensors["head.out_proj.bias"]).numpy()
        return (tensors["head.weight"] @ pooled + tensors["head.bias"]).numpy()

    def _pooled(self, pooling: str, row: Row, max_length: int) -> torch.Tensor:
        tokenizer = type(self.backbone.tokenizer).from_str(self.backbone.tokenizer.to_str())
        tokenizer.enable_truncation(max_length, strategy="longest_first")
        encoding = tokenizer.encode(row.text, row.text_pair)
        inputs = {"input_ids": torch.tensor([encoding.ids])}
        if self.model.config.model_type not in ("distilbert", "modernbert"):
            inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
        hidden = self.model(**inputs).last_hidden_state
        if pooling == "cls":
            return hidden[0, 0]
        return hidden[0].mean(0) if pooling == "mean" else self.model.pooler(hidden)[0]
