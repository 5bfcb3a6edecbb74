"""From hidden states to logits for rows of many adapters at once: pooling and heads of every width in one batch.

Knows tensors and the bank's head shelves; nothing of text or labels' names.
"""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adakron.activations import Activation, activate
from adakron.bank import BankView, HeadShape, Placement
from adakron.config import Pooling, ProblemType
from adakron.kernels.compiler import native_library
from adakron.kernels.native import grouped_products, products, row_means
from adakron.plan import Plan, Stage


def pool_packed(
    hidden: Tensor,
    plan: Plan,
    poolings: Sequence[Pooling],
    pooler: Callable[[Tensor], Tensor] | None,
    kernels: str = "eager",
) -> Tensor:
    """One vector a row, each pooled as its adapter wants: [T, D] -> [B, D] float32, packed order of the last stage.

    poolings  for each packed row; "pooler" only where `pooler` is given, [B, D] -> [B, D]
    kernels   the name of those that run: "native" has means of its own
    """
    stage, wanted = plan.stages[-1], set(poolings)
    if wanted == {"mean"}:
        return _means(hidden, stage, kernels)
    first = hidden[torch.from_numpy(stage.starts).to(hidden.device)]
    pooled = first.float()
    if "mean" in wanted:
        pooled = torch.where(_chosen(poolings, "mean", hidden.device), _means(hidden, stage, kernels), pooled)
    if "pooler" in wanted and pooler is not None:
        pooled = torch.where(_chosen(poolings, "pooler", hidden.device), pooler(first).float(), pooled)
    return pooled


def _means(hidden: Tensor, stage: Stage, kernels: str) -> Tensor:
    """[T, D] -> [B, D] float32, over each row's tokens."""
    if kernels == "native" and (library := native_library()) is not None:
        return row_means(library, hidden, stage.starts, stage.lengths)
    lengths = torch.from_numpy(stage.lengths).to(hidden.device)
    # unsafe: it does not check the lengths, for which it would wait for the device.
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)


def _chosen(poolings: Sequence[Pooling], wanted: Pooling, device: torch.device) -> Tensor:
    return torch.tensor([pooling == wanted for pooling in poolings], device=device)[:, None]


def classify(
    pooled: Tensor,
    view: BankView,
    placements: Sequence[Placement | None],
    kernels: str = "eager",
    *,
    invariant: bool = False,
) -> list[np.ndarray | None]:
    """Logits of every row: pooled [B, D] float32, placements in the same order -> [width] float32 each.

    width is the padded width of the row's head: the caller cuts it to the number of labels. None for rows without
    adapter.

    kernels    the name of those that run: "native" and "triton" take heads of all widths in one call
    invariant  a row's logits do not depend on other rows to the last bit: "eager" computes each alone
    """
    if kernels == "triton":
        from adakron.kernels.grouped_heads import grouped_logits  # triton is there only where these kernels run

        return grouped_logits(pooled, view, placements)
    by_shape: dict[HeadShape, list[tuple[int, int]]] = {}
    for row, placement in enumerate(placements):
        if placement is not None:
            by_shape.setdefault(placement.head, []).append((row, placement.head_slot))
    if kernels == "native" and (library := native_library()) is not None:
        return _grouped(pooled, view, by_shape, library)
    logits: list[np.ndarray | None] = [None] * len(placements)
    for shape, members in by_shape.items():
        for part in [[member] for member in members] if invariant else [members]:
            rows = torch.tensor([row for row, _ in part], device=pooled.device)
            answer = _head(pooled[rows], view.head(shape), shape, [slot for _, slot in part]).cpu().numpy()
            for (row, _), values in zip(part, answer, strict=True):
                logits[row] = values
    return logits


def _grouped(
    pooled: Tensor, view: BankView, by_shape: dict[HeadShape, list[tuple[int, int]]], library: ctypes.CDLL
) -> list[np.ndarray | None]:
    """Two calls at most: the dense maps of all RoBERTa-style heads, then every head's projection."""
    parts = [
        (view.head(shape), shape, [row for row, _ in members], [slot for _, slot in members])
        for shape, members in by_shape.items()
    ]
    inputs, width = pooled.contiguous(), pooled.shape[1]
    tables: list[np.ndarray] = []
    transformed: list[int] = []
    for head, shape, rows, slots in parts:
        if shape.kind == "roberta":
            tables.append(products(head["dense"], head["dense_bias"], slots, rows, len(transformed) * width))
            transformed += rows
    if tables:
        dense = torch.empty(len(transformed), width)
        dtype = next(head["dense"].dtype for head, shape, _, _ in parts if shape.kind == "roberta")
        grouped_products(library, inputs, dtype, tables, dense)
        inputs = inputs.clone()
        inputs[transformed] = dense.tanh_()
    logits: list[np.ndarray | None] = [None] * len(pooled)
    if not parts:
        return logits
    tables, begins, begin = [], [], 0
    for head, shape, rows, slots in parts:
        tables.append(products(head["weight"], head["bias"], slots, rows, begin))
        begins.append(begin)
        begin += shape.width * len(rows)
    out = torch.empty(begin)
    grouped_products(library, inputs, torch.float32, tables, out)
    answers = out.numpy()
    for first, (_, shape, rows, _) in zip(begins, parts, strict=True):
        block = answers[first : first + len(rows) * shape.width].reshape(len(rows), shape.width)
        for row, values in zip(rows, block, strict=True):
            logits[row] = values
    return logits


def _head(pooled: Tensor, head: dict[str, Tensor], shape: HeadShape, slots: list[int]) -> Tensor:
    """pooled [b, D], one slot a row -> logits [b, width]."""
    if shape.kind == "roberta":
        transformed = torch.empty_like(pooled)
        for slot in sorted(set(slots)):  # a dense map is as large as a layer's: gathering one a row would cost more
            rows = torch.tensor([n for n, other in enumerate(slots) if other == slot], device=pooled.device)
            dense = head["dense"][slot]
            answer = F.linear(pooled[rows].to(dense.dtype), dense, head["dense_bias"][slot])
            transformed[rows] = answer.tanh().float()
        pooled = transformed
    index = torch.tensor(slots, device=pooled.device)
    return torch.baddbmm(head["bias"][index][..., None], head["weight"][index], pooled[..., None]).squeeze(-1)


def scores(logits: np.ndarray, problem_type: ProblemType, temperatures: np.ndarray) -> np.ndarray:
    """softmax(logits / temperature), sigmoid for multi-label, nothing for regression: [n, L] float32 -> [n, L], [n, 0].

    temperatures  [n] float32

    For finite logits of any size. A row's scores are the same to the last bit whatever the others are.
    """
    if problem_type == "regression":
        return np.empty((len(logits), 0), dtype=np.float32)
    activation: Activation = "sigmoid" if problem_type == "multi_label_classification" else "softmax"
    return activate(logits / temperatures[:, None], activation)
