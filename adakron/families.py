"""Which encoders adapters attach to, and where.

The site is the last linear map of each layer's feed-forward block: its output is the adapter's x, before dropout,
residual and, in post-LN encoders, LayerNorm. A family not listed here is refused by name. Knows transformers' module
names; nothing of adapters.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from adakron.errors import BackboneError


@dataclass(frozen=True, slots=True)
class Family:
    """Paths of modules.

    root    the encoder, in a model with a task head around it
    layers  the list of layers, in the encoder
    site    the site, in a layer
    """

    root: str
    layers: str
    site: str


FAMILIES: dict[str, Family] = {
    "bert": Family("bert", "encoder.layer", "output.dense"),
    "roberta": Family("roberta", "encoder.layer", "output.dense"),
    "xlm-roberta": Family("roberta", "encoder.layer", "output.dense"),
    "electra": Family("electra", "encoder.layer", "output.dense"),
    "deberta-v2": Family("deberta", "encoder.layer", "output.dense"),
    "distilbert": Family("distilbert", "transformer.layer", "ffn.lin2"),
    "modernbert": Family("model", "layers", "mlp.Wo"),
}


def family_of(model: PreTrainedModel) -> Family:
    """Raises BackboneError naming the model type if it is not supported."""
    return family_named(model.config.model_type)


def family_named(model_type: str) -> Family:
    """Raises BackboneError naming the model type if it is not supported."""
    if model_type not in FAMILIES:
        raise BackboneError(
            f"encoders of type {model_type!r} are not supported",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]


def sites(model: PreTrainedModel) -> list[nn.Linear]:
    """The site of every layer, in order; `model` is the bare encoder, as AutoModel gives it.

    Raises BackboneError for an unsupported family, for a model with a task head around the encoder, and where a site
    is not a plain linear layer (a quantised one, say).
    """
    family = family_of(model)
    try:
        layers = model.get_submodule(family.layers)
        found = [layer.get_submodule(family.site) for layer in layers.children()]
    except AttributeError as error:
        raise BackboneError(
            f"{type(model).__name__} has no {family.layers!r}", hint="pass the bare encoder, as AutoModel loads it"
        ) from error
    linear = [site for site in found if isinstance(site, nn.Linear)]
    if len(linear) < len(found):
        raise BackboneError(f"{type(model).__name__}: {family.site!r} is not a linear layer in every layer")
    return linear
