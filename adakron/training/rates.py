"""Learning rates that differ from layer to layer. Knows an optimiser and the adapters; nothing of schedules or data."""

from collections import defaultdict
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer


def decay_by_layer(optimizer: Optimizer, adapters: Iterable[nn.Module], decay: float) -> None:
    """Multiply the learning rate of adapter l of n, lowest layer first, by decay^(n - 1 - l), in place.

    The highest adapter and whatever is no adapter keep their rate. To be called before a schedule is made, which reads
    the rates.
    Source: Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018, section 3.2 (discriminative rates).
    """
    if decay == 1.0:
        return
    layers = list(adapters)
    shares = {
        p: decay ** (len(layers) - 1 - layer) for layer, adapter in enumerate(layers) for p in adapter.parameters()
    }
    groups = []
    for group in optimizer.param_groups:
        parts = defaultdict(list)
        for parameter in group["params"]:
            parts[shares.get(parameter, 1.0)].append(parameter)
        groups += [group | {"params": part, "lr": group["lr"] * share} for share, part in parts.items()]
    optimizer.param_groups[:] = groups
