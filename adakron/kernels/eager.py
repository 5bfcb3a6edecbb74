"""The kernels in plain torch, for any device: the readable reference of the others, and what runs where they cannot.

Knows the equation and the bank's tensors; nothing of linear maps, text or heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from adakron.adaptation import adapt_padded, bottleneck
from adakron.bank import BankView
from adakron.buckets import Buckets, make_buckets
from adakron.kernels.interface import Embeddings, Norm
from adakron.plan import SiteGroup, Stage


class EagerKernels:
    """invariant: a row's values do not depend on its neighbours to the last bit: each is computed by itself."""

    name = "eager"

    def __init__(self, heads: int, dtype: torch.dtype, device: torch.device, *, invariant: bool = False) -> None:
        self.heads, self.dtype, self.device, self.invariant = heads, dtype, device, invariant

    def embed(self, tables: Embeddings, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        return tables(ids, type_ids, positions)

    def begin(self, stage: Stage, view: BankView) -> "EagerWork":
        return EagerWork(self, stage, view)


class EagerWork:
    def __init__(self, kernels: EagerKernels, stage: Stage, view: BankView) -> None:
        self._heads, self._view, self._groups = kernels.heads, view, stage.groups
        device, alone = kernels.device, kernels.invariant
        self._rows = make_buckets(stage.lengths, stage.starts, device, mask_dtype=kernels.dtype, alone=alone)
        self._parts: list[tuple[Buckets, Tensor] | None] = []
        for group in stage.groups:
            if (group.slots == group.slots[0]).all() and not kernels.invariant:
                self._parts.append(None)
                continue
            rows = slice(group.first, group.last)
            starts = stage.starts[rows] - group.begin
            buckets = make_buckets(stage.lengths[rows], starts, device, mask_dtype=None, alone=alone)
            self._parts.append((buckets, torch.from_numpy(group.slots).to(device)))

    def attend(self, qkv: Tensor) -> Tensor:
        width = qkv.shape[1] // 3
        padded = []
        for bucket in self._rows.parts:
            rows = qkv[bucket.gather].view(len(bucket.rows), bucket.length, 3, self._heads, width // self._heads)
            q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)  # each [b, H, L, D / H]
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.mask)
            padded.append(context.transpose(1, 2).reshape(-1, width))
        return torch.cat(padded)[self._rows.scatter]

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def add_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        return norm(x.add_(residual))

    def adapt_add_norm(self, x: Tensor, residual: Tensor, norm: Norm, layer: int) -> Tensor:
        return norm(self.adapt_add(x, residual, layer))

    def adapt_add(self, x: Tensor, residual: Tensor, layer: int) -> Tensor:
        for group, part in zip(self._groups, self._parts, strict=True):
            if layer >= group.shape.first_layer:
                self._adapt(x[group.begin : group.end], layer, group, part)
        return x.add_(residual)

    def _adapt(self, x: Tensor, layer: int, group: SiteGroup, part: tuple[Buckets, Tensor] | None) -> None:
        """Write the tokens of one group through their adapters: x [t, D], in place."""
        site = self._view.site(group.shape, layer)
        if part is None:
            slot = int(group.slots[0])
            z = bottleneck(F.linear(x, site["down"][slot], site["down_bias"][slot]), group.shape)
            x.add_(torch.addmm(site["up_bias"][slot], z, site["up"][slot]))
            return
        buckets, slots = part
        padded = []
        for bucket in buckets.parts:
            rows = x[bucket.gather].view(len(bucket.rows), bucket.length, -1)
            padded.append(adapt_padded(rows, site, group.shape, slots[bucket.rows]).flatten(0, 1))
        torch.index_select(torch.cat(padded), 0, buckets.scatter, out=x)
