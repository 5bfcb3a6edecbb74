"""The frozen encoder's forward over one batch of many adapters, in two ways with one contract.

    hidden = encoder(plan, view)        [T, D], packed order: the last hidden state of every token

PackedEncoder runs its own forward on packed tokens, for the post-LN families it knows. PaddedEncoder runs the
transformers model itself on padded buckets, for every other supported family. Knows the layers; nothing of rows' text,
adapters' names or heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from adakron.adaptation import adapt_packed, adapt_padded
from adakron.backbone import Backbone
from adakron.bank import BankView
from adakron.families import family_of, sites
from adakron.plan import Plan

PACKED = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert"})


class Encoder(Protocol):
    """path: "packed" or "padded", for people who ask which forward runs."""

    path: str

    def __call__(self, plan: Plan, view: BankView) -> Tensor: ...


def make_encoder(backbone: Backbone, dtype: torch.dtype, device: torch.device) -> Encoder:
    """The fast forward where the family allows it, else the general one, which takes the backbone's model over."""
    config = backbone.model.config
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if backbone.model_type in PACKED and absolute:
        return PackedEncoder(backbone.model, dtype, device)
    return PaddedEncoder(backbone.model, dtype, device)


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-LN layer: qkv [3 D, D] in one product, both norms after their residual."""

    qkv: Linear
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    site: Linear
    output_norm: Norm


class PackedEncoder:
    """No padding through linear maps and norms; attention on buckets of similar length."""

    path = "packed"

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        def linear(*maps: nn.Module) -> Linear:
            weight = torch.cat([m.get_parameter("weight") for m in maps])
            bias = torch.cat([m.get_parameter("bias") for m in maps])
            return Linear(weight.to(device, dtype), bias.to(device, dtype))

        def norm(module: nn.Module) -> Norm:
            weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
            return Norm(weight.to(device, dtype), bias.to(device, dtype), float(getattr(module, "eps")))  # noqa: B009

        def table(module: nn.Module) -> Tensor:
            return module.get_parameter("weight").to(device, dtype)

        config, embeddings = model.config, model.get_submodule("embeddings")
        names = _DISTIL if config.model_type == "distilbert" else _BERT
        self.words = table(embeddings.get_submodule("word_embeddings"))
        self.positions = table(embeddings.get_submodule("position_embeddings"))
        types = dict(embeddings.named_children()).get("token_type_embeddings")
        self.types = None if types is None else table(types)
        self.norm = norm(embeddings.get_submodule("LayerNorm"))
        project = dict(model.named_children()).get("embeddings_project")
        self.project = None if project is None else linear(project)
        self.heads = int(config.num_attention_heads)
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[
            config.activation if config.model_type == "distilbert" else config.hidden_act
        ]
        self.layers = [
            Layer(
                qkv=linear(*(layer.get_submodule(name) for name in names.qkv)),
                attention_out=linear(layer.get_submodule(names.attention_out)),
                attention_norm=norm(layer.get_submodule(names.attention_norm)),
                up=linear(layer.get_submodule(names.up)),
                site=linear(layer.get_submodule(names.site)),
                output_norm=norm(layer.get_submodule(names.output_norm)),
            )
            for layer in model.get_submodule(family_of(model).layers).children()
        ]

    def __call__(self, plan: Plan, view: BankView) -> Tensor:
        """Returns the last hidden state [T, D] in packed order."""
        x = self._embed(plan)
        for number, layer in enumerate(self.layers):
            h = layer.attention_norm(layer.attention_out(self._attend(layer.qkv(x), plan)).add_(x))
            y = adapt_packed(layer.site(self.activation(layer.up(h))), number, view, plan)
            x = layer.output_norm(y.add_(h))
        return x

    def _embed(self, plan: Plan) -> Tensor:
        x = F.embedding(plan.ids, self.words)
        if self.types is not None:
            x = x + F.embedding(plan.type_ids, self.types)
        x = self.norm(x + F.embedding(plan.positions, self.positions))
        return x if self.project is None else self.project(x)

    def _attend(self, qkv: Tensor, plan: Plan) -> Tensor:
        """qkv [T, 3 D] -> context [T, D]."""
        width = qkv.shape[1] // 3
        padded = []
        for bucket in plan.buckets:
            rows = qkv[bucket.gather].view(len(bucket.rows), bucket.length, 3, self.heads, width // self.heads)
            q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)  # each [b, H, L, D / H]
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.mask)
            padded.append(context.transpose(1, 2).reshape(-1, width))
        return torch.cat(padded)[plan.scatter]


class PaddedEncoder:
    """The transformers model as it is, on padded buckets, with the batch's adapters at its sites.

    The hooks live as long as this encoder; what they apply is the batch at hand, never a global active adapter. One
    call at a time.
    """

    path = "padded"

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model.to(device=device, dtype=dtype)  # type: ignore[call-arg]  # transformers wraps `to`
        self._work: tuple[Plan, BankView, Tensor] | None = None
        for number, site in enumerate(sites(self.model)):
            site.register_forward_hook(self._hook(number))

    def __call__(self, plan: Plan, view: BankView) -> Tensor:
        """Returns the last hidden state [T, D] in packed order."""
        padded = []
        for bucket in plan.buckets:
            shape = (len(bucket.rows), bucket.length)
            inside = torch.arange(bucket.length, device=bucket.lengths.device)[None] < bucket.lengths[:, None]
            self._work = (plan, view, bucket.rows)
            try:
                hidden = self.model(
                    input_ids=plan.ids[bucket.gather].view(shape),
                    token_type_ids=plan.type_ids[bucket.gather].view(shape),
                    attention_mask=inside.long(),
                ).last_hidden_state
            finally:
                self._work = None
            padded.append(hidden.flatten(0, 1))
        return torch.cat(padded)[plan.scatter]

    def _hook(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(site: nn.Module, inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
            if self._work is None:
                return x
            plan, view, rows = self._work
            for group in plan.groups:
                if layer >= group.shape.first_layer:
                    x = adapt_padded(x, view.site(group.shape, layer), group.shape, group.slots_of(rows))
            return x

        return adapt


@dataclass(frozen=True, slots=True)
class _Names:
    """Where a family keeps the parts of one layer."""

    qkv: tuple[str, str, str]
    attention_out: str
    attention_norm: str
    up: str
    site: str
    output_norm: str


_BERT = _Names(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    site="output.dense",
    output_norm="output.LayerNorm",
)
_DISTIL = _Names(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    site="ffn.lin2",
    output_norm="output_layer_norm",
)
