"""The heads of all rows of a batch on CUDA, whatever their widths: one launch for the dense maps, one for the logits.

Every product of a vector with a matrix of its own is cut into programs of a few outputs, which find the matrix by its
address: no weight is gathered, and a row's sums are the same to the last bit in every batch. Importing it needs triton.
Knows tensors and the bank's head shelves; nothing of text or labels' names.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from adakron.bank import BankView, HeadShape, Placement
from adakron.errors import ShapeError
from adakron.kernels.tables import Tables

BLOCK_OUT = 16
BLOCK_D = 128
VECTOR_BYTES = 16


def grouped_logits(pooled: Tensor, view: BankView, placements: Sequence[Placement | None]) -> list[np.ndarray | None]:
    """Logits of every row: pooled [B, D] float32, placements in the same order -> [width] float32 each.

        linear    W[s] x + b[s]
        roberta   W[s] tanh(V[s] x + c[s]) + b[s]          s: the row's slot on its head's shelf

    width is the padded width of the row's head: the caller cuts it to the number of labels. None for rows without
    adapter. Sums are float32; V may be of any float dtype. Raises ShapeError.
    """
    if pooled.ndim != 2 or pooled.dtype != torch.float32 or not pooled.is_contiguous():
        raise ShapeError(f"pooled: expected [B, D] float32, contiguous; got {tuple(pooled.shape)} of {pooled.dtype}")
    width = pooled.shape[1]
    members: dict[HeadShape, list[tuple[int, int]]] = {}
    for row, placement in enumerate(placements):
        if placement is not None:
            members.setdefault(placement.head, []).append((row, placement.head_slot))
    if not members:
        return [None] * len(placements)
    dense, logits = [np.empty((0, 5), np.int64)], []
    begins: dict[int, slice] = {}
    size = 0
    like_dense: Tensor | None = None
    for shape, pairs in members.items():
        rows, slots = np.array(pairs, dtype=np.int64).T
        head = view.head(shape)
        if shape.kind == "roberta":
            like_dense = head["dense"]
            dense.append(_entries(head["dense"], head["dense_bias"], rows, slots, rows * width))
        starts = size + shape.width * np.arange(len(rows))
        logits.append(_entries(head["weight"], head["bias"], rows, slots, starts))
        begins |= {row: slice(start, start + shape.width) for row, start in zip(rows.tolist(), starts, strict=True)}
        size += shape.width * len(rows)
    tables = Tables.of([np.concatenate(dense), np.concatenate(logits)], pooled.device)
    inputs = pooled
    if like_dense is not None:
        inputs = pooled.clone()
        _launch(pooled, like_dense, tables.tensors[0], inputs, tanh=True)
    out = pooled.new_empty(size)
    _launch(inputs, pooled, tables.tensors[1], out, tanh=False)
    answers = out.cpu().numpy()
    return [answers[begins[row]] if row in begins else None for row in range(len(placements))]


def compile_heads(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what heads of an encoder of this width and dtype may launch, by running it for no output at all."""
    x, nothing = torch.zeros(1, width, device=device), torch.zeros(1, 5, dtype=torch.int64, device=device)
    _launch(x, torch.empty(1, dtype=dtype, device=device), nothing, x, tanh=True)
    _launch(x, x, nothing, x, tanh=False)


def _entries(weight: Tensor, bias: Tensor, rows: np.ndarray, slots: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """[N, 5] int64, one a program: the addresses of its first output's weights and bias, row, place, outputs.

    weight [S, L, D], bias [S, L]; rows, slots, begins [n]: out[begins[i] : begins[i] + L] is for x[rows[i]]
    """
    outputs, width = weight.shape[1:]
    if not (weight[0].is_contiguous() and bias[0].is_contiguous()):
        raise ShapeError("a head's numbers must lie together")
    first = np.arange(0, outputs, BLOCK_OUT)
    weights = weight.data_ptr() + weight.element_size() * (slots[:, None] * weight.stride(0) + first * width)
    biases = bias.data_ptr() + bias.element_size() * (slots[:, None] * bias.stride(0) + first)
    counts = np.minimum(outputs - first, BLOCK_OUT)
    columns = np.broadcast_arrays(weights, biases, rows[:, None], begins[:, None] + first, counts)
    return np.stack(columns, axis=-1).reshape(-1, 5)


def _launch(x: Tensor, like: Tensor, entries: Tensor, out: Tensor, *, tanh: bool) -> None:
    width = x.shape[1]
    _grouped_products[(len(entries),)](
        x,
        like,
        entries,
        out,
        D=width,
        TANH=tanh,
        ROW_BYTES=VECTOR_BYTES if width * like.element_size() % VECTOR_BYTES == 0 else like.element_size(),
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_D=BLOCK_D,
    )


@triton.jit
def _grouped_products(
    x: tl.tensor,
    like: tl.tensor,
    entries: tl.tensor,
    out: tl.tensor,
    D: tl.constexpr,
    TANH: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program, one entry. like: any tensor of the weights' dtype; nothing is read of it."""
    entry = entries + 5 * tl.program_id(0)
    number: tl.constexpr = tl.pointer_type(like.dtype.element_ty)
    weight = tl.multiple_of(tl.load(entry).to(number), ROW_BYTES)
    bias = tl.load(entry + 1).to(number)
    row = x + tl.load(entry + 2) * D
    outputs = tl.arange(0, BLOCK_OUT)
    present = outputs < tl.load(entry + 4)
    sums = tl.zeros((BLOCK_OUT,), tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        real = columns < D
        places = weight + outputs[:, None] * D + columns[None, :]
        part = tl.load(places, mask=present[:, None] & real[None, :], other=0).to(tl.float32)
        sums += tl.sum(part * tl.load(row + columns, mask=real, other=0)[None, :], 1)
    sums += tl.load(bias + outputs, mask=present, other=0).to(tl.float32)
    if TANH:
        sums = 2 * tl.sigmoid(2 * sums) - 1
    tl.store(out + tl.load(entry + 3) + outputs, sums, mask=present)
