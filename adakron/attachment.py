"""Adapters on a transformers encoder, by forward hooks: neither its code nor any global state is touched.

For training and as the reference for the engine; serving many adapters at once is `adakron.engine`.
"""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from adakron.config import AdaKronConfig, Method
from adakron.errors import BackboneError, ConfigError
from adakron.families import sites
from adakron.module import AdaKron, MAdaKron


class SiteHook:
    """Replaces a site's output x by adapter(x)."""

    def __init__(self, adapter: AdaKron | MAdaKron) -> None:
        self.adapter = adapter

    def __call__(self, site: nn.Module, inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        y: Tensor = self.adapter(x)
        return y


def attach(
    model: PreTrainedModel, config: AdaKronConfig, method: Method = "adakron", experts: int = 4
) -> nn.ModuleList:
    """Freeze `model` and put one new adapter at each layer's site from config.first_layer on.

    Returns the adapters, first one first; they take the device of their site and float32. The hooks stay until
    `detach(model)`. The adapters are not submodules of the model: its state_dict does not change.

    Raises BackboneError for an unsupported family or a model that carries adapters already, ConfigError for an unknown
    method or if first_layer is not below the number of layers.
    """
    found = _free_sites(model)
    if method not in get_args(Method):
        raise ConfigError(f"method: expected one of {get_args(Method)}; found {method!r}", key="method")
    if config.first_layer >= len(found):
        raise ConfigError(
            f"first_layer: expected less than the model's {len(found)} layers; found {config.first_layer}",
            key="first_layer",
        )
    model.requires_grad_(False)
    adapters: list[AdaKron | MAdaKron] = []
    for site in found[config.first_layer :]:
        hidden_size = site.out_features
        if method == "adakron":
            adapter: AdaKron | MAdaKron = AdaKron(hidden_size, config)
        else:
            adapter = MAdaKron(
                hidden_size, config, share="full" if method == "madakron-full" else "partial", experts=experts
            )
        adapters.append(adapter.to(site.weight.device))
        site.register_forward_hook(SiteHook(adapters[-1]))
    return nn.ModuleList(adapters)


def attach_trained(model: PreTrainedModel, adapters: Sequence[AdaKron], first_layer: int = 0) -> None:
    """Put existing adapters at the sites from first_layer on, one a layer; the model keeps its requires_grad.

    Raises BackboneError as `attach` does, ConfigError for another number of adapters.
    """
    found = _free_sites(model)[first_layer:]
    if len(found) != len(adapters):
        raise ConfigError(
            f"expected {len(found)} adapters, one for each layer from {first_layer} on; found {len(adapters)}"
        )
    for site, adapter in zip(found, adapters, strict=True):
        site.register_forward_hook(SiteHook(adapter))


def _free_sites(model: PreTrainedModel) -> list[nn.Linear]:
    found = sites(model)
    if attached(model):
        raise BackboneError("this model carries adapters already", hint="call detach(model) first")
    return found


def attached(model: PreTrainedModel) -> list[AdaKron | MAdaKron]:
    """The adapters that `model` carries now, first layer first."""
    return [
        hook.adapter for site in sites(model) for hook in site._forward_hooks.values() if isinstance(hook, SiteHook)
    ]


def detach(model: PreTrainedModel) -> None:
    """Remove every adapter from `model`, which then computes what it did before; without adapters, nothing happens."""
    for site in sites(model):
        for key, hook in list(site._forward_hooks.items()):
            if isinstance(hook, SiteHook):
                del site._forward_hooks[key]
