"""The engine itself as the benchmark runs it, the bare backbone in it, and the floor below both.

A system prepares a batch, untimed, and gives back what is timed: from token ids to logits on the host. Tokenisation is
part of no system.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adakron import AdaKronConfig, Adapter, AdapterConfig, Backbone, Engine, Result, Row, RowError
from adakron.artefact import expected_shapes
from adakron.encoder import PaddedEncoder
from adakron.encoding import EncodedRow
from adakron.families import family_of
from adakron.linear import Linear, make_linear
from loadtests.engine_contest import Run
from loadtests.engine_trace import MAX_TOKENS, Batch

# What tasks really have: two labels most often, then sentiment with a middle, emotions, emoji.
LABEL_COUNTS = (2, 2, 3, 4, 20)
SEEDS_PER_LABEL_COUNT = 3
WEIGHT_STD = 0.05


class System(Protocol):
    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        """What is timed for this batch; whatever it needs until then is given back when `held` closes."""
        ...


class EngineSystem:
    """The engine with adapters resident: row n asks for keys[adapters[n]]; without keys, for the backbone."""

    def __init__(self, engine: Engine, keys: Sequence[str] | None) -> None:
        self._engine, self._keys = engine, keys

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        keys = [None if self._keys is None else self._keys[number] for number in batch.adapters]
        rows = encode(self._engine, batch, keys, held)
        return lambda: [logits_of(answer) for answer in self._engine.run(rows)]


class PaddedEngine:
    """B5: the same engine with the same adapters over the transformers model itself, in padded buckets of rows."""

    def __init__(self, engine: Engine, keys: Sequence[str], backbone: Backbone) -> None:
        self._engine, self._keys = engine, keys
        self._encoder = PaddedEncoder(deepcopy(backbone.model), engine.dtype, engine.device)

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        rows = encode(self._engine, batch, [self._keys[number] for number in batch.adapters], held)

        def run() -> list[np.ndarray]:
            packed, self._engine._encoder = self._engine._encoder, self._encoder
            try:
                return [logits_of(answer) for answer in self._engine.run(rows)]
            finally:
                self._engine._encoder = packed

        return run


class BareBackbone:
    """B0: this engine without any adapter, then one head over all rows, as one product, and its softmax.

    Rows are Row(adapter=None): no adapter's arithmetic is done and none is skipped. The vectors are mean-pooled, as
    the benchmark's adapters pool.
    """

    def __init__(self, engine: Engine, num_labels: int = 2) -> None:
        self._engine = engine
        self._head = nn.Linear(engine.info().hidden_size, num_labels).requires_grad_(False)

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        rows = encode(self._engine, batch, [None] * len(batch.ids), held)

        def run() -> np.ndarray:
            pooled = np.stack([embedding_of(answer) for answer in self._engine.run(rows)])
            scores: np.ndarray = self._head(torch.from_numpy(pooled)).softmax(-1).numpy()
            return scores

        return run


class Floor:
    """The encoder's linear layers alone on packed tokens, the three of attention's input as one: nothing can be faster.

    The very products that the engine computes, its weights prepared as there. No attention, no norms, no activation, no
    embeddings, no head.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        layers = backbone.model.get_submodule(family_of(backbone.model).layers).children()
        self._layers = [_fused_linears(layer, dtype, device) for layer in layers]

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        inputs = {
            width: torch.randn(batch.n_tokens, width, device=self._device).to(self._dtype)
            for width in sorted({width for layer in self._layers for width, _ in layer})
        }

        @torch.inference_mode()
        def run() -> None:
            for layer in self._layers:
                for width, linear in layer:
                    linear(inputs[width])
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run


def _fused_linears(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> list[tuple[int, Linear]]:
    """(input width, map) of every linear map of a layer; query, key and value as one, as in ModernBERT."""
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    n_inputs = len(linears) - 3  # all but attention's output and the feed-forward block's two
    all_weights: list[Tensor] = [linear.weight for linear in linears]
    all_biases: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    weights = [torch.cat(all_weights[:n_inputs]), *all_weights[n_inputs:]]
    biases = [torch.cat(all_biases[:n_inputs]), *all_biases[n_inputs:]]
    return [
        (weight.shape[1], make_linear(weight.detach().to(device, dtype), bias.detach().to(device, dtype)))
        for weight, bias in zip(weights, biases, strict=True)
    ]


def adapter_template(backbone: Backbone, shape: AdaKronConfig) -> AdapterConfig:
    """What all adapters of the benchmark share; they differ in their labels."""
    return AdapterConfig(
        adakron=shape,
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_hidden_layers,
        base_model_name_or_path=backbone.name,
        base_fingerprint=backbone.fingerprint,
        label_names=("no", "yes"),
        pooling="mean",
        max_length=min(MAX_TOKENS, backbone.max_length),
    )


def random_adapters(template: AdapterConfig) -> list[Adapter]:
    """Adapters of every label count; whoever needs more of them takes them in turn."""
    adapters = []
    for seed in range(SEEDS_PER_LABEL_COUNT * len(LABEL_COUNTS)):
        labels = tuple(f"label-{number}" for number in range(LABEL_COUNTS[seed % len(LABEL_COUNTS)]))
        config = replace(template, label_names=labels)
        random = torch.Generator().manual_seed(seed)
        tensors = {
            name: WEIGHT_STD * torch.randn(size, generator=random) for name, size in expected_shapes(config).items()
        }
        adapters.append(Adapter.build(config, tensors))
    return adapters


def register(engine: Engine, adapters: Sequence[Adapter], count: int, prefix: str) -> list[str]:
    """Make `count` adapters resident, each with slots of its own, and return their keys. Raises BankFullError."""
    keys = [f"{prefix}-{number}" for number in range(count)]
    for number, key in enumerate(keys):
        engine.add(key, adapters[number % len(adapters)])
    return keys


def encode(engine: Engine, batch: Batch, keys: Sequence[str | None], held: ExitStack) -> list[EncodedRow]:
    """Rows ready to run, their leases held. Raises ValueError for a row that the engine refuses."""
    leases = [held.enter_context(engine.lease(key)) for key in keys]
    rows = [Row(adapter=key, input_ids=ids) for key, ids in zip(keys, batch.ids, strict=True)]
    encoded = engine.encode(rows, leases)
    refused = [row for row in encoded if isinstance(row, RowError)]
    if refused:
        raise ValueError(f"the engine refuses a row of the trace: {refused[0].message}")
    return [row for row in encoded if isinstance(row, EncodedRow)]


def logits_of(answer: Result | RowError) -> np.ndarray:
    """[L] float32. Raises ValueError for a row without an answer: a benchmark must not count it."""
    if isinstance(answer, RowError):
        raise ValueError(f"a row failed: {answer.code}: {answer.message}")
    return answer.logits


def embedding_of(answer: Result | RowError) -> np.ndarray:
    """[D] float32. Raises ValueError for a row without an answer."""
    if isinstance(answer, RowError) or answer.embedding is None:
        raise ValueError("a row of the bare backbone gave no embedding")
    return answer.embedding
