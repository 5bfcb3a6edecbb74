"""The frozen encoder as adapters that are trained side by side share it: entered at any layer, by rows of several.

Knows a transformers encoder and adapter modules; nothing of tasks, losses or steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adakron.families import family_of, sites
from adakron.module import AdaKron, MAdaKron


@dataclass(frozen=True, slots=True)
class Segment:
    """rows: those of one adapter in a batch, a slice of it; adapters: its modules, one a layer from first_layer on."""

    rows: slice
    adapters: Sequence[AdaKron | MAdaKron]


class SharedEncoder:
    """An encoder whose every site runs each row through the adapter of its segment.

        below(rows, L)             the hidden states that enter layer L, with no adapter below it
        above(hidden, rows, L, s)  what the layers from L on make of them, with adapters

    so that above(below(rows, L), rows, L, s) is what the whole encoder gives for adapters that start at layer L.

    The hooks stay until `close()`; a site without segments gives its own output. Not for use by two threads.
    """

    def __init__(self, model: PreTrainedModel, mixed: torch.dtype | None = None) -> None:
        """mixed: the dtype of the matrix products under autocast; None: that of the weights."""
        self._model, self._mixed = model, mixed
        path, _, self._field = family_of(model).layers.rpartition(".")
        self._stack = model.get_submodule(path)
        self._layers: nn.ModuleList = getattr(self._stack, self._field)
        self._device = next(model.parameters()).device
        self._sites = [_SharedSite() for _ in self._layers]
        self._hooks = [
            site.register_forward_hook(shared) for site, shared in zip(sites(model), self._sites, strict=True)
        ]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def can_be_entered(self) -> bool:
        """False where a layer's place in the stack changes what is computed: DeBERTa's convolution after the first."""
        return not getattr(self._model.config, "conv_kernel_size", 0)

    def below(self, rows: Mapping[str, Tensor], layer: int) -> Tensor:
        """Ids, mask and types [B, T] -> hidden states [B, T, D] that enter `layer` (at least 1), without dropout."""
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.append(output if isinstance(output, Tensor) else output[0])

        last = self._layers[layer - 1]
        hook = last.register_forward_hook(keep)
        try:
            with torch.no_grad(), self._only(self._layers[:layer]):
                self._run(rows, is_training=False)
        finally:
            hook.remove()
        return found[0]

    def above(
        self,
        hidden: Tensor | None,
        rows: Mapping[str, Tensor],
        layer: int,
        segments: Sequence[Segment],
        *,
        is_training: bool,
    ) -> Tensor:
        """Hidden states [B, T, D] that enter `layer`, with their rows -> the last hidden state [B, T, D].

        `hidden` None: the rows are run from their ids on. The segments cover the batch in order; their adapters start
        at `layer`.
        """
        for depth, site in enumerate(self._sites):
            site.parts = [(part.rows, part.adapters[depth - layer]) for part in segments if depth >= layer]
        try:
            if hidden is None:
                return self._run(rows, is_training=is_training)
            entry = self._layers[layer].register_forward_pre_hook(_entering(hidden), with_kwargs=True)
            try:
                with self._only(self._layers[layer:]):
                    return self._run(rows, is_training=is_training)
            finally:
                entry.remove()
        finally:
            for site in self._sites:
                site.parts = []

    def close(self) -> None:
        """Take the hooks off: the encoder computes what it did before."""
        for hook in self._hooks:
            hook.remove()

    def autocast(self) -> torch.autocast:
        """What the encoder's own products run under; a head's should too."""
        return torch.autocast(self._device.type, dtype=self._mixed, enabled=self._mixed is not None)

    def _run(self, rows: Mapping[str, Tensor], *, is_training: bool) -> Tensor:
        self._model.train(is_training)
        with self.autocast():
            hidden: Tensor = self._model(**rows).last_hidden_state
        return hidden

    @contextmanager
    def _only(self, layers: nn.ModuleList) -> Iterator[None]:
        """Let the encoder run these layers alone: what it does around them is its own, whatever its family."""
        setattr(self._stack, self._field, layers)
        try:
            yield
        finally:
            setattr(self._stack, self._field, self._layers)


class _SharedSite:
    """Replaces a site's output x [B, T, D] by each part's adapter(x[rows])."""

    def __init__(self) -> None:
        self.parts: list[tuple[slice, AdaKron | MAdaKron]] = []

    def __call__(self, site: nn.Module, inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        if not self.parts:
            return x
        return torch.cat([adapter(x[rows]) for rows, adapter in self.parts])


def _entering(hidden: Tensor) -> Any:
    """A hook that gives a layer `hidden` instead of what came before it."""

    def enter(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs:
            return (hidden, *inputs[1:]), named
        return inputs, named | {"hidden_states": hidden}

    return enter
