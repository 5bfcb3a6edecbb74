"""Plain bottleneck adapters, Pfeiffer's and Houlsby's: what AdaKron is compared with. For training alone.

Knows sites and linear maps; nothing of recipes or data.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from adakron.errors import BackboneError
from adakron.families import family_of, sites
from adakron.module import INIT_STD

_ATTENTION_SITE = {"distilbert": "attention.out_lin", "modernbert": "attn.Wo"}
_BERT_ATTENTION_SITE = "attention.output.dense"


class Bottleneck(nn.Module):
    """y = x + B gelu(A x + a) + b for x [..., d]: an adapter with one full down-projection A [r, d].

    Exact (erf) GELU and the near-identity start of `AdaKron`, so that the two differ in nothing but the projection.
    Parameters: 2 d r + r + d.
    """

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck)
        self.up = nn.Linear(bottleneck, hidden_size)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        nn.init.normal_(self.up.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> y [..., d], a new tensor of x's dtype."""
        y: Tensor = x + self.up(F.gelu(self.down(x)))
        return y


def attach_bottlenecks(model: PreTrainedModel, bottleneck: int, *, after_attention: bool = False) -> nn.ModuleList:
    """Freeze `model` and put a bottleneck behind the feed-forward block of every layer, before residual and
    (in post-LN encoders) LayerNorm.

    after_attention  put one behind the attention block too, as Houlsby et al. (2019) do; Pfeiffer et al. (2021) do not

    The hooks stay as long as the model. Raises BackboneError for an unsupported family.
    """
    places = sites(model)
    if after_attention:
        places = places + _attention_sites(model)
    model.requires_grad_(False)
    adapters = [Bottleneck(place.out_features, bottleneck).to(place.weight.device) for place in places]
    for place, adapter in zip(places, adapters, strict=True):
        place.register_forward_hook(_Replace(adapter))
    return nn.ModuleList(adapters)


class _Replace:
    """A hook that passes a module's output through an adapter."""

    def __init__(self, adapter: Bottleneck) -> None:
        self.adapter = adapter

    def __call__(self, site: nn.Module, inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        y: Tensor = self.adapter(x)
        return y


def _attention_sites(model: PreTrainedModel) -> list[nn.Linear]:
    """The last linear map of each layer's attention block, in order."""
    path = _ATTENTION_SITE.get(model.config.model_type, _BERT_ATTENTION_SITE)
    found = []
    for layer in model.get_submodule(family_of(model).layers).children():
        try:
            site = layer.get_submodule(path)
        except AttributeError as error:
            raise BackboneError(f"{type(model).__name__} has no {path!r} in its layers") from error
        assert isinstance(site, nn.Linear)
        found.append(site)
    return found
