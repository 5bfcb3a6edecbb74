"""The method: AdaKron and its multi-expert variant MAdaKron as torch modules, for one layer.

Knows tensors and the equation; knows nothing of transformers, files or batches of many adapters.

Source: Braga, Raganato, Pasi, "AdaKron: An Adapter-based Parameter Efficient Model Tuning with Kronecker Product",
LREC-COLING 2024, pp. 350-357; order of the factors as in the authors' GLUE code.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adakron.config import AdaKronConfig

INIT_STD = 1e-3


def kronecker(u: Tensor, v: Tensor, order: str) -> Tensor:
    """u (x) v of the last dimension: [..., k], [..., q] -> [..., k * q].

    order "a2_a1": element (i, j) at index i * q + j; "a1_a2": v (x) u, element (i, j) at index j * k + i.
    """
    first, second = (u, v) if order == "a2_a1" else (v, u)
    return (first[..., :, None] * second[..., None, :]).flatten(-2)


class AdaKron(nn.Module):
    """One bottleneck adapter whose down-projection is the Kronecker product of two small linear maps.

        u = A2 x + b2          v = A1 x + b1
        z = gelu(u (x) v)      exact (erf) GELU
        y = x + B z + c        the residual is the adapter's own input

    a1   Linear(d, r / k)      a2   Linear(d, k)      up   Linear(r, d)

    Near-identity at the start: `up.weight` ~ N(0, 1e-3) and all biases 0. Exactly zero would give A1 and A2 no
    gradient in the first step.
    """

    def __init__(self, hidden_size: int, config: AdaKronConfig) -> None:
        super().__init__()
        self.order = config.order
        self.a1 = nn.Linear(hidden_size, config.quotient)
        self.a2 = nn.Linear(hidden_size, config.factor)
        self.up = nn.Linear(config.bottleneck, hidden_size)
        for linear in (self.a1, self.a2, self.up):
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.up.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> y [..., d], a new tensor of x's dtype."""
        y: Tensor = x + self.up(F.gelu(kronecker(self.a2(x), self.a1(x), self.order)))
        return y

    def merged(self) -> "AdaKron":
        """The adapter to export: itself."""
        return self


class ExpertLinear(nn.Module):
    """E linear maps of one shape. Training draws one at random for each call; inference uses their average.

    weight [E, out, in], bias [E, out]. The draw uses torch's global CPU generator, so a seed repeats it.
    """

    def __init__(self, in_features: int, out_features: int, experts: int) -> None:
        super().__init__()
        maps = [nn.Linear(in_features, out_features) for _ in range(experts)]
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in maps]))
        self.bias = nn.Parameter(torch.zeros(experts, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if not self.training:
            return F.linear(x, self.weight.mean(0), self.bias.mean(0))
        expert = int(torch.randint(self.weight.shape[0], ()))
        return F.linear(x, self.weight[expert], self.bias[expert])

    def averaged(self) -> nn.Linear:
        """The average of the experts as a plain linear map, detached."""
        _, out_features, in_features = self.weight.shape
        linear = nn.Linear(in_features, out_features)
        linear.weight.data.copy_(self.weight.detach().mean(0))
        linear.bias.data.copy_(self.bias.detach().mean(0))
        return linear


class MAdaKron(nn.Module):
    """AdaKron with several experts for A2 ("partial") or for A1 and A2 ("full"), averaged at inference.

    Same equation as `AdaKron`. Linear maps average exactly, so `merged()` is a plain AdaKron with the very outputs
    of this module in eval mode: it costs nothing to serve.
    Source: the authors' later variant in github.com/DetectiveMB/AdaKron.
    """

    def __init__(
        self, hidden_size: int, config: AdaKronConfig, *, share: Literal["partial", "full"] = "full", experts: int = 4
    ) -> None:
        super().__init__()
        if experts < 2:
            raise ValueError(f"experts: expected at least 2; found {experts}")
        plain = AdaKron(hidden_size, config)
        self.config, self.hidden_size, self.order = config, hidden_size, config.order
        self.a2 = ExpertLinear(hidden_size, config.factor, experts)
        self.a1 = ExpertLinear(hidden_size, config.quotient, experts) if share == "full" else plain.a1
        self.up = plain.up

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> y [..., d], a new tensor of x's dtype."""
        y: Tensor = x + self.up(F.gelu(kronecker(self.a2(x), self.a1(x), self.order)))
        return y

    def merged(self) -> AdaKron:
        """The averaged experts as a plain AdaKron with its own memory."""
        plain = AdaKron(self.hidden_size, self.config)
        plain.a2.load_state_dict(self.a2.averaged().state_dict())
        a1 = self.a1.averaged() if isinstance(self.a1, ExpertLinear) else self.a1
        plain.a1.load_state_dict(a1.state_dict())
        plain.up.load_state_dict(self.up.state_dict())
        return plain
