"""ModernBERT's forward over one batch of many adapters: pre-LN layers on packed tokens, as in `PackedEncoder`.

    h = x + Wo attend(rotate(Wqkv norm(x)))             layer 0 has no norm before its attention
    x = h + adapters(Wo (gelu(Wi norm(h)) * Wg norm(h)))
    hidden = norm(x)                                    once, after the last layer

An adapter's input is the output of the MLP's Wo, before the residual; no norm follows it. Attention is over the whole
row in some layers and within a window in the others, each kind with rotary frequencies of its own. Knows the layers;
nothing of rows' text, adapters' names or heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from adakron.bank import BankView
from adakron.buckets import Bucket, Buckets, make_buckets
from adakron.families import family_of
from adakron.kernels.interface import Norm, PreNormKernels, PreNormWork
from adakron.linear import Linear, make_linear
from adakron.plan import Plan, Stage

LOCAL = "sliding_attention"


def is_plain_modernbert(config: PreTrainedConfig) -> bool:
    """Whether this forward is that of the model: its rotary frequencies are not stretched for longer texts."""
    return config.model_type == "modernbert" and all(
        parameters.get("rope_type") == "default" for parameters in config.rope_parameters.values()
    )


@dataclass(frozen=True, slots=True)
class Layer:
    """qkv [3 D, D] in one product; attention_norm is None in layer 0; up and gate are the two halves of Wi."""

    attention_norm: Norm | None
    qkv: Linear
    attention_out: Linear
    mlp_norm: Norm
    up: Linear
    gate: Linear
    site: Linear
    kind: str


class ModernEncoder:
    """No padding through linear maps and norms; only windowed attention over rows longer than the window pads."""

    path = "packed"

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        device: torch.device,
        kernels: PreNormKernels,
        *,
        invariant: bool = False,
    ) -> None:
        def linear(module: nn.Module, rows: slice = slice(None)) -> Linear:
            weight = module.get_parameter("weight")[rows].to(device, dtype)
            bias = _bias(module)[rows].to(device, dtype)
            return make_linear(weight, bias, invariant=invariant)

        def norm(module: nn.Module) -> Norm:
            weight, eps = module.get_parameter("weight"), float(getattr(module, "eps"))  # noqa: B009
            return Norm(weight.to(device, dtype), _bias(module).to(device, dtype), eps)

        config = model.config
        self.kernels, self.kernels_name = kernels, kernels.name
        self.dtype, self.device, self.invariant = dtype, device, invariant
        self.heads, inner = int(config.num_attention_heads), int(config.intermediate_size)
        self.window = int(config.sliding_window)
        self.words = model.get_submodule("embeddings.tok_embeddings").get_parameter("weight").to(device, dtype)
        self.norm = norm(model.get_submodule("embeddings.norm"))
        self.final_norm = norm(model.get_submodule("final_norm"))
        activation = str(config.hidden_activation)
        self.activation: Callable[[Tensor], Tensor] | None = None if activation == "gelu" else ACT2FN[activation]
        self.rotations = {
            kind: _rotations(config, float(parameters["rope_theta"]), device)
            for kind, parameters in config.rope_parameters.items()
        }
        self.layers = [
            Layer(
                attention_norm=norm(layer.get_submodule("attn_norm")) if number else None,
                qkv=linear(layer.get_submodule("attn.Wqkv")),
                attention_out=linear(layer.get_submodule("attn.Wo")),
                mlp_norm=norm(layer.get_submodule("mlp_norm")),
                up=linear(layer.get_submodule("mlp.Wi"), slice(None, inner)),
                gate=linear(layer.get_submodule("mlp.Wi"), slice(inner, None)),
                site=linear(layer.get_submodule("mlp.Wo")),
                kind=str(config.layer_types[number]),
            )
            for number, layer in enumerate(model.get_submodule(family_of(model).layers).children())
        ]

    def __call__(self, plan: Plan, view: BankView) -> Tensor:
        """Returns the last hidden state [T, D] in packed order of the plan's last stage."""
        x = self.norm(F.embedding(self._tensor(plan.ids), self.words))
        for stage in plan.stages:
            if stage.take is not None:
                x = x[self._tensor(stage.take)]
            x = self._run_layers(x, stage, self.kernels.begin(stage, view))
        return self.final_norm(x)

    def prepare(self, view: BankView) -> None:
        """Nothing: these kernels are compiled when they are chosen."""

    def _run_layers(self, x: Tensor, stage: Stage, work: PreNormWork) -> Tensor:
        """The layers of one stage: [T, D] -> [T, D]."""
        places = self._tensor(np.arange(stage.n_tokens) - np.repeat(stage.starts, stage.lengths))
        turns = {kind: (cos[places], sin[places]) for kind, (cos, sin) in self.rotations.items()}
        windowed = self._windowed(stage)
        for number in range(len(self.layers))[stage.first_layer : stage.last_layer]:
            layer = self.layers[number]
            qkv = layer.qkv(x if layer.attention_norm is None else layer.attention_norm(x))
            _rotate(qkv, *turns[layer.kind], self.heads)
            if layer.kind == LOCAL and windowed is not None:
                context = self._attend_within(qkv, *windowed)
            else:
                context = work.attend(qkv)
            h = layer.attention_out(context) + x
            normed = layer.mlp_norm(h)
            up = layer.up(normed)
            inner = work.gelu(up) if self.activation is None else self.activation(up)
            x = work.adapt_add(layer.site(inner.mul_(layer.gate(normed))), h, number)
        return x

    def _windowed(self, stage: Stage) -> tuple[Buckets, list[Tensor | None]] | None:
        """Rows by length with the masks of local attention; None where every token is within every window.

        In batch-invariant encoders rows of any length take this way: how one is computed must not depend on another.
        """
        if int(stage.lengths.max()) <= self.window + 1 and not self.invariant:
            return None
        buckets = make_buckets(stage.lengths, stage.starts, self.device, mask_dtype=self.dtype, alone=self.invariant)
        return buckets, [self._window_mask(bucket) for bucket in buckets.parts]

    def _window_mask(self, bucket: Bucket) -> Tensor | None:
        """[b, 1, length, length], 0 or -inf, written out in full; a token sees those at most `window` places away."""
        if bucket.length <= self.window + 1:
            return bucket.mask
        place = torch.arange(bucket.length, device=self.device)
        far = (place[:, None] - place[None]).abs() > self.window
        mask = torch.zeros(bucket.length, bucket.length, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(far, float("-inf"))[None, None]
        if bucket.mask is None:
            return mask.expand(len(bucket.rows), -1, -1, -1).contiguous()
        return mask + bucket.mask  # a query that is padding may see nothing and become NaN; no token reads it

    def _attend_within(self, qkv: Tensor, buckets: Buckets, masks: list[Tensor | None]) -> Tensor:
        """softmax(q k^T / sqrt(D / H) + mask) v within each row, head by head: [T, 3 D] -> [T, D]."""
        width = qkv.shape[1] // 3
        padded = []
        for bucket, mask in zip(buckets.parts, masks, strict=True):
            rows = qkv[bucket.gather].view(len(bucket.rows), bucket.length, 3, self.heads, width // self.heads)
            q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)  # each [b, H, L, D / H]
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            padded.append(context.transpose(1, 2).reshape(-1, width))
        return torch.cat(padded)[buckets.scatter]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _bias(module: nn.Module) -> Tensor:
    """Zeros where the map or norm has none: adding them changes nothing."""
    bias: Tensor | None = getattr(module, "bias")  # noqa: B009
    return torch.zeros(len(module.get_parameter("weight"))) if bias is None else bias


def _rotations(config: PreTrainedConfig, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [P, D / H] float32: at place p, feature i of the first half turns by p * theta^(-2 i H / D).

    Source: Su et al., "RoFormer", 2021, with the halves of a head as its pairs.
    """
    width = int(config.hidden_size) // int(config.num_attention_heads)
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(int(config.max_position_embeddings), dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=1).to(device)
    return angles.cos(), angles.sin()


def _rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Turn queries and keys in place: qkv [T, 3 D], cos and sin [T, D / H]."""
    rows = qkv.view(len(qkv), 3, heads, -1)[:, :2]
    first, second = rows.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    rows.copy_(torch.cat([first, second], dim=-1) * cos[:, None, None] + turned * sin[:, None, None])
