"""The adapters of a whole batch as a few tensor operations: the readable reference of the hot path.

Knows the equation and the bank's tensors; nothing of the encoder around it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from adakron.bank import BankView, SiteShape
from adakron.plan import Plan


def adapt_padded(x: Tensor, site: dict[str, Tensor], shape: SiteShape, slots: Tensor) -> Tensor:
    """Every row through the adapter in its slot.

        u, v = A2[s] x + b2[s], A1[s] x + b1[s]        s = slots[n], for each row n and token t
        z    = gelu(u (x) v)                           element (i, j) of u, v at index i * Q + j
        y    = x + B[s] z + c[s]                       the residual is the adapter's own input

    x      [B, T, D]
    site   one layer of a shelf: down [S, K + Q, D], down_bias [S, K + Q], up [S, D, K * Q], up_bias [S, D], x's dtype
    slots  [B] int64 in [0, S); slot 0 is the identity
    Returns [B, T, D], a new tensor. Padding is computed too: it must be finite.
    """
    down = torch.baddbmm(site["down_bias"][slots][:, None], x, site["down"][slots].mT)  # [B, T, K + Q]
    z = _bottleneck(down, shape)
    return torch.baddbmm(site["up_bias"][slots][:, None], z, site["up"][slots].mT).add_(x)


def adapt_packed(x: Tensor, layer: int, bank: BankView, plan: Plan) -> Tensor:
    """The same equation on packed tokens: x [T, D] -> [T, D], rows without adapter unchanged. May write into x."""
    for group in plan.groups:
        if layer < group.shape.first_layer:
            continue
        site = bank.site(group.shape, layer)
        part = x[group.begin : group.end]
        if group.only is not None:
            down = F.linear(part, site["down"][group.only], site["down_bias"][group.only])
            z = _bottleneck(down, group.shape)
            part.add_(F.linear(z, site["up"][group.only], site["up_bias"][group.only]))
            continue
        padded = []
        for bucket in group.buckets:
            rows = part[bucket.gather].view(len(bucket.rows), bucket.length, -1)
            padded.append(adapt_padded(rows, site, group.shape, group.slots[bucket.rows]).flatten(0, 1))
        torch.index_select(torch.cat(padded), 0, group.scatter, out=part)
    return x


def _bottleneck(down: Tensor, shape: SiteShape) -> Tensor:
    """gelu(u (x) v): [..., K + Q] -> [..., K * Q]."""
    u, v = down[..., : shape.factor, None], down[..., None, shape.factor :]
    return F.gelu((u * v).flatten(-2))
