"""From hidden states to logits for rows of many adapters at once: pooling and heads of every width in one batch.

Knows tensors and the bank's head shelves; nothing of text or labels' names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adakron.bank import BankView, HeadShape, Placement
from adakron.config import Pooling
from adakron.plan import Plan

GATHER_WIDTH = 16  # wider heads cost more to gather row by row than to multiply adapter by adapter


def pool_packed(hidden: Tensor, plan: Plan, poolings: Sequence[Pooling], pooler: nn.Module | None) -> Tensor:
    """One vector a row, each pooled as its adapter wants: [T, D] -> [B, D] float32, packed order.

    poolings  for each packed row; "pooler" only where `pooler` is given
    """
    first = hidden[plan.starts]
    pooled = first.float()
    if "mean" in poolings:
        means = torch.segment_reduce(hidden.float(), "mean", lengths=plan.lengths)
        pooled = torch.where(_chosen(poolings, "mean", hidden.device), means, pooled)
    if "pooler" in poolings and pooler is not None:
        pooled = torch.where(_chosen(poolings, "pooler", hidden.device), pooler(first[:, None]).float(), pooled)
    return pooled


def _chosen(poolings: Sequence[Pooling], wanted: Pooling, device: torch.device) -> Tensor:
    return torch.tensor([pooling == wanted for pooling in poolings], device=device)[:, None]


def classify(pooled: Tensor, view: BankView, placements: Sequence[Placement | None]) -> list[Tensor | None]:
    """Logits of every row: pooled [B, D] float32, placements in the same order -> [width] float32 on the CPU each.

    width is the padded width of the row's head: the caller cuts it to the number of labels. None for rows without
    adapter.
    """
    by_shape: dict[HeadShape, list[int]] = {}
    for row, placement in enumerate(placements):
        if placement is not None:
            by_shape.setdefault(placement.head, []).append(row)
    logits: list[Tensor | None] = [None] * len(placements)
    for shape, rows in by_shape.items():
        slots = [p.head_slot for row in rows if (p := placements[row]) is not None]
        answer = _head(pooled[torch.tensor(rows, device=pooled.device)], view.head(shape), shape, slots).cpu()
        for row, values in zip(rows, answer, strict=True):
            logits[row] = values
    return logits


def _head(pooled: Tensor, head: dict[str, Tensor], shape: HeadShape, slots: list[int]) -> Tensor:
    """pooled [b, D], one slot a row -> logits [b, width]."""
    if shape.kind == "linear" and shape.width <= GATHER_WIDTH:
        index = torch.tensor(slots, device=pooled.device)
        return torch.baddbmm(head["bias"][index][..., None], head["weight"][index], pooled[..., None]).squeeze(-1)
    logits = pooled.new_empty(len(slots), shape.width)
    for slot in sorted(set(slots)):
        rows = torch.tensor([n for n, other in enumerate(slots) if other == slot], device=pooled.device)
        part = pooled[rows]
        if shape.kind == "roberta":
            dense = head["dense"][slot]
            part = F.linear(part.to(dense.dtype), dense, head["dense_bias"][slot]).tanh().float()
        logits[rows] = F.linear(part, head["weight"][slot], head["bias"][slot])
    return logits
