"""Rows of similar length, padded to the longest of them: for operations that need rectangles.

Knows lengths and devices; nothing of adapters or weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length, padded to the longest of them.

    rows     [b] int64, packed row numbers
    gather   [b * length] int64, the packed token at each padded position; padding repeats the row's first token,
             so it is always finite
    lengths  [b] int64
    mask     [b, 1, length, length] of the encoder's dtype, 0 or -inf, written out in full (a broadcast mask sends
             attention down a slow path); None where no row is padded
    """

    rows: Tensor
    gather: Tensor
    lengths: Tensor
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Buckets:
    """All rows of a stage. scatter [T] int64: the padded position of each packed token, over all buckets."""

    parts: tuple[Bucket, ...]
    scatter: Tensor


def make_buckets(
    lengths: np.ndarray,
    starts: np.ndarray,
    device: torch.device,
    *,
    mask_dtype: torch.dtype | None,
    alone: bool = False,
) -> Buckets:
    """Rows by falling length, cut where the next would be padded by more than a quarter (at least 8 tokens).

    mask_dtype  of the attention masks; None for no masks
    alone       each row in a bucket of its own, so that the rectangles do not depend on other rows
    """
    by_length = np.argsort(-lengths, kind="stable")
    cuts: list[list[int]] = []
    for row in by_length.tolist():
        longest = int(lengths[cuts[-1][0]]) if cuts else 0
        if cuts and not alone and longest - lengths[row] <= max(8, longest // 4):
            cuts[-1].append(row)
        else:
            cuts.append([row])
    scatter = np.empty(int(lengths.sum()), dtype=np.int64)
    parts, offset = [], 0
    for rows in cuts:
        length = int(lengths[rows[0]])
        column = np.arange(length, dtype=np.int64)
        valid = column[None] < lengths[rows][:, None]
        gather = starts[rows][:, None] + np.where(valid, column[None], 0)
        scatter[gather[valid]] = offset + np.flatnonzero(valid)
        offset += gather.size
        mask = None
        if mask_dtype is not None and not valid.all():
            hidden = ~torch.from_numpy(valid)[:, None, None]
            bias = torch.zeros(len(rows), 1, 1, length, dtype=mask_dtype).masked_fill(hidden, float("-inf"))
            mask = bias.to(device).expand(-1, 1, length, -1).contiguous()
        parts.append(
            Bucket(
                rows=torch.tensor(rows, device=device),
                gather=torch.from_numpy(gather.reshape(-1)).to(device),
                lengths=torch.from_numpy(lengths[rows]).to(device),
                length=length,
                mask=mask,
            )
        )
    return Buckets(tuple(parts), torch.from_numpy(scatter).to(device))
