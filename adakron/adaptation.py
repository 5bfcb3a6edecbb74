"""The adapters of a batch of padded rows as a few tensor operations: the equation as plain torch says it.

Knows the equation and the bank's tensors; nothing of the encoder around it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from adakron.bank import SiteShape


def adapt_padded(x: Tensor, site: dict[str, Tensor], shape: SiteShape, slots: Tensor) -> Tensor:
    """Every row through the adapter in its slot.

        u, v = A2[s] x + b2[s], A1[s] x + b1[s]        s = slots[n], for each row n and token t
        z    = gelu(u (x) v)                           element (i, j) of u, v at index i * Q + j
        y    = x + B[s] z + c[s]                       the residual is the adapter's own input

    x      [B, T, D]
    site   one layer of a shelf: down [S, K + Q, D], down_bias [S, K + Q], up [S, K * Q, D] (B transposed),
           up_bias [S, D], x's dtype
    slots  [B] int64 in [0, S); slot 0 is the identity
    Returns [B, T, D], a new tensor. Padding is computed too: it must be finite.
    """
    down = torch.baddbmm(site["down_bias"][slots][:, None], x, site["down"][slots].mT)  # [B, T, K + Q]
    return torch.baddbmm(site["up_bias"][slots][:, None], bottleneck(down, shape), site["up"][slots]).add_(x)


def bottleneck(down: Tensor, shape: SiteShape) -> Tensor:
    """gelu(u (x) v): [..., K + Q] -> [..., K * Q]."""
    u, v = down[..., : shape.factor, None], down[..., None, shape.factor :]
    return F.gelu((u * v).flatten(-2))
