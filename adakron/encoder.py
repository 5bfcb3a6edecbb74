"""The frozen encoder's forward over one batch of many adapters, in two ways with one contract.

    hidden = encoder(plan, view)        [T, D], packed order: the last hidden state of every token

PackedEncoder runs its own forward on packed tokens, for the post-LN families it knows, and ModernEncoder does so for
ModernBERT. PaddedEncoder runs the transformers model itself on padded buckets, for every other supported family. Knows
the layers; nothing of rows' text, adapters' names or heads.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from adakron.adaptation import adapt_padded
from adakron.backbone import Backbone
from adakron.bank import BankView
from adakron.buckets import make_buckets
from adakron.errors import BackboneError
from adakron.families import family_of, sites
from adakron.kernels.compiler import native_library
from adakron.kernels.eager import EagerKernels
from adakron.kernels.interface import Embeddings, Kernels, Norm, StageWork
from adakron.kernels.native import NativeKernels
from adakron.linear import Linear, make_linear
from adakron.modern_encoder import ModernEncoder, is_plain_modernbert
from adakron.plan import Plan, SiteGroup

PACKED = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert"})

KernelChoice = Literal["auto", "eager"]


class Encoder(Protocol):
    """path: "packed" or "padded", kernels: the name of its kernels; for people who ask which forward runs."""

    path: str
    kernels_name: str

    def __call__(self, plan: Plan, view: BankView) -> Tensor: ...

    def prepare(self, view: BankView) -> None:
        """Do now what the first batch on the view's shelves would wait for; nothing where it was done before."""


def make_encoder(
    backbone: Backbone,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kernels: KernelChoice = "auto",
    invariant: bool = False,
) -> Encoder:
    """The fast forward where the family allows it, else the general one, which takes the backbone's model over.

    kernels    "auto": the fastest that run here; "eager": plain torch
    invariant  a row's hidden states are the same to the last bit whatever its batch-mates; packed families only

    Raises BackboneError for an invariant encoder of another family.
    """
    config = backbone.model.config
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if backbone.model_type in PACKED and absolute:
        heads = int(config.num_attention_heads)
        if kernels == "auto" and device.type == "cuda" and _runs_triton(device):
            return _triton_encoder(backbone.model, heads, dtype, device, invariant=invariant)
        chosen = make_kernels(kernels, heads, dtype, device, invariant=invariant)
        return PackedEncoder(backbone.model, dtype, device, chosen, invariant=invariant)
    if is_plain_modernbert(config):
        chosen = make_kernels(kernels, int(config.num_attention_heads), dtype, device, invariant=invariant)
        return ModernEncoder(backbone.model, dtype, device, chosen, invariant=invariant)
    if invariant:
        raise BackboneError(
            f"{backbone.model_type}: its rows depend on their batch-mates in the last bits",
            hint=f"batch-invariant answers need one of: {', '.join(sorted({*PACKED, 'modernbert'}))}",
        )
    return PaddedEncoder(backbone.model, dtype, device)


def make_kernels(
    choice: KernelChoice, heads: int, dtype: torch.dtype, device: torch.device, *, invariant: bool
) -> NativeKernels | EagerKernels:
    """Compiled before the first request is taken, or plain torch where there is no compiler."""
    if choice == "auto" and device.type == "cpu":
        library = native_library()
        if library is not None:
            return NativeKernels(library, heads, dtype)
    return EagerKernels(heads, dtype, device, invariant=invariant)


def _runs_triton(device: torch.device) -> bool:
    """Ampere and later have what the kernels use; triton itself is not made for every platform."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def _triton_encoder(
    model: PreTrainedModel, heads: int, dtype: torch.dtype, device: torch.device, *, invariant: bool
) -> Encoder:
    from adakron.graphs import GraphedEncoder  # these import triton, which may be missing
    from adakron.kernels.cuda import TritonKernels

    kernels = TritonKernels(heads, int(model.config.hidden_size), dtype, device, invariant=invariant)
    return GraphedEncoder(PackedEncoder(model, dtype, device, kernels, invariant=invariant), kernels)


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
    """No padding through linear maps and norms; what lies between them is `kernels`'s."""

    path = "packed"

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        *,
        invariant: bool = False,
    ) -> None:
        def linear(*maps: nn.Module) -> Linear:
            weight = torch.cat([m.get_parameter("weight") for m in maps])
            bias = torch.cat([m.get_parameter("bias") for m in maps])
            return make_linear(weight.to(device, dtype), bias.to(device, dtype), invariant=invariant)

        def norm(module: nn.Module) -> Norm:
            weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
            return Norm(weight.to(device, dtype), bias.to(device, dtype), float(getattr(module, "eps")))  # noqa: B009

        def table(module: nn.Module) -> Tensor:
            return module.get_parameter("weight").to(device, dtype)

        self.kernels, self.kernels_name = kernels, kernels.name
        config, embeddings = model.config, model.get_submodule("embeddings")
        names = _DISTIL if config.model_type == "distilbert" else _BERT
        types = dict(embeddings.named_children()).get("token_type_embeddings")
        self.embeddings = Embeddings(
            words=table(embeddings.get_submodule("word_embeddings")),
            positions=table(embeddings.get_submodule("position_embeddings")),
            types=None if types is None else table(types),
            norm=norm(embeddings.get_submodule("LayerNorm")),
        )
        project = dict(model.named_children()).get("embeddings_project")
        self.project = None if project is None else linear(project)
        activation = str(config.activation if config.model_type == "distilbert" else config.hidden_act)
        self.activation: Callable[[Tensor], Tensor] | None = None if activation == "gelu" else ACT2FN[activation]
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
        """Returns the last hidden state [T, D] in packed order of the plan's last stage."""
        x = self.embed(*(self._tensor(values) for values in (plan.ids, plan.type_ids, plan.positions)))
        for stage in plan.stages:
            if stage.take is not None:
                x = x[self._tensor(stage.take)]
            x = self.run_layers(x, self.kernels.begin(stage, view), stage.first_layer, stage.last_layer)
        return x

    def prepare(self, view: BankView) -> None:
        """Nothing: these kernels are compiled when they are chosen."""

    def embed(self, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads: three times [T] int64 -> [T, D]."""
        x = self.kernels.embed(self.embeddings, ids, type_ids, positions)
        return x if self.project is None else self.project(x)

    def run_layers(self, x: Tensor, work: StageWork, first_layer: int, last_layer: int | None) -> Tensor:
        """The layers of one stage: [T, D] -> [T, D]; last_layer is excluded, None is the end."""
        for number in range(len(self.layers))[first_layer:last_layer]:
            layer = self.layers[number]
            h = work.add_norm(layer.attention_out(work.attend(layer.qkv(x))), x, layer.attention_norm)
            up = layer.up(h)
            inner = work.gelu(up) if self.activation is None else self.activation(up)
            x = work.adapt_add_norm(layer.site(inner), h, layer.output_norm, number)
        return x

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.embeddings.words.device, non_blocking=True)


class PaddedEncoder:
    """The transformers model as it is, on padded buckets, with the batch's adapters at its sites.

    The hooks live as long as this encoder; what they apply is the batch at hand, never a global active adapter. One
    call at a time.
    """

    path = "padded"
    kernels_name = "eager"

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.device = model.to(device=device, dtype=dtype), device  # type: ignore[call-arg]  # transformers wraps `to` and loses its overloads
        # Encoders that do not tell two texts apart by types take none.
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self._work: tuple[tuple[SiteGroup, ...], BankView, Tensor] | None = None
        for number, site in enumerate(sites(self.model)):
            site.register_forward_hook(self._hook(number))

    def __call__(self, plan: Plan, view: BankView) -> Tensor:
        """Returns the last hidden state [T, D] in packed order. The plan has one stage: no layer is shared here."""
        (stage,) = plan.stages
        buckets = make_buckets(stage.lengths, stage.starts, self.device, mask_dtype=None)
        ids, type_ids = torch.from_numpy(plan.ids).to(self.device), torch.from_numpy(plan.type_ids).to(self.device)
        padded = []
        for bucket in buckets.parts:
            shape = (len(bucket.rows), bucket.length)
            inside = torch.arange(bucket.length, device=self.device)[None] < bucket.lengths[:, None]
            self._work = (stage.groups, view, bucket.rows)
            try:
                types = {"token_type_ids": type_ids[bucket.gather].view(shape)} if self._takes_types else {}
                hidden = self.model(
                    input_ids=ids[bucket.gather].view(shape), attention_mask=inside.long(), **types
                ).last_hidden_state
            finally:
                self._work = None
            padded.append(hidden.flatten(0, 1))
        return torch.cat(padded)[buckets.scatter]

    def prepare(self, view: BankView) -> None:
        """Nothing: this forward is transformers' own."""

    def _hook(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(site: nn.Module, inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
            if self._work is None:
                return x
            groups, view, rows = self._work
            for group in groups:
                if layer >= group.shape.first_layer:
                    x = adapt_padded(x, view.site(group.shape, layer), group.shape, _slots_of(group, rows))
            return x

        return adapt


def _slots_of(group: SiteGroup, rows: Tensor) -> Tensor:
    """The slot of each packed row number, slot 0 (the identity) for rows outside the group."""
    slots = torch.from_numpy(group.slots).to(rows.device)
    number = rows - group.first
    inside = (number >= 0) & (number < len(slots))
    return torch.where(inside, slots[number.clamp(0, len(slots) - 1)], 0)


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
