"""The heads of all rows of a batch on CUDA, whatever their widths: one launch for the dense maps, one for the logits.

Every product of a vector with a matrix of its own is cut into programs of a few outputs, which find the matrix by its
address: no weight is gathered, and a row's sums are the same to the last bit in every batch. Importing it needs triton.
Knows tensors and the bank's head shelves; nothing of text or labels' names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    heads: dict[HeadShape, tuple[_Places, _Places | None]] = {}
    dense, logits, answered = [], [], []
    begin = 0
    for row, placement in enumerate(placements):
        if placement is None:
            continue
        shape, slot = placement.head, placement.head_slot
        if shape not in heads:
            head = view.head(shape)
            hidden = _Places.of(head["dense"], head["dense_bias"]) if shape.kind == "roberta" else None
            heads[shape] = _Places.of(head["weight"], head["bias"]), hidden
        weight, hidden = heads[shape]
        if hidden is not None:
            dense.append((*hidden.of_slot(slot), row, row * width))
        logits.append((*weight.of_slot(slot), row, begin))
        answered.append((row, begin, begin + shape.width))
        begin += shape.width
    answers: list[np.ndarray | None] = [None] * len(placements)
    if not answered:
        return answers
    hidden_like = next((hidden.weight for _, hidden in heads.values() if hidden is not None), pooled)
    tables = Tables.of([_entries(dense, width, hidden_like), _entries(logits, width, pooled)], pooled.device)
    inputs = pooled
    if dense:
        inputs = pooled.clone()
        _launch(pooled, hidden_like, tables.tensors[0], inputs, tanh=True)
    out = pooled.new_empty(begin)
    _launch(inputs, pooled, tables.tensors[1], out, tanh=False)
    values = out.cpu().numpy()
    for row, first, last in answered:
        answers[row] = values[first:last]
    return answers


def compile_heads(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what heads of an encoder of this width and dtype may launch, by running it for no output at all."""
    x, nothing = torch.zeros(1, width, device=device), torch.zeros(1, 5, dtype=torch.int64, device=device)
    _launch(x, torch.empty(1, dtype=dtype, device=device), nothing, x, tanh=True)
    _launch(x, x, nothing, x, tanh=False)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the matrices of one shelf lie. weight [S, L, D], bias [S, L]: a slot's numbers together."""

    weight: Tensor
    weights: int
    biases: int
    weight_stride: int
    bias_stride: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "_Places":
        """Raises ShapeError."""
        if not (weight[0].is_contiguous() and bias[0].is_contiguous()):
            raise ShapeError("a head's numbers must lie together")
        strides = weight.stride(0) * weight.element_size(), bias.stride(0) * bias.element_size()
        return cls(weight, weight.data_ptr(), bias.data_ptr(), *strides)

    def of_slot(self, slot: int) -> tuple[int, int, int]:
        """(address of the matrix, address of the bias, outputs)."""
        addresses = self.weights + slot * self.weight_stride, self.biases + slot * self.bias_stride
        return (*addresses, self.weight.shape[1])


def _entries(products: Sequence[tuple[int, int, int, int, int]], width: int, like: Tensor) -> np.ndarray:
    """[N, 5] int64, one a program: the addresses of its first output's weights and bias, row, place, outputs.

    products  a matrix's address, its bias's, its outputs L, a row r, a place p: out[p : p + L] is for x[r]
    like      a tensor of the weights' dtype
    """
    if not products:
        return np.empty((0, 5), np.int64)
    weights, biases, outputs, rows, places = np.array(products, dtype=np.int64).T
    programs = -(-outputs // BLOCK_OUT)
    owner = np.repeat(np.arange(len(products)), programs)
    first = BLOCK_OUT * (np.arange(len(owner)) - np.repeat(np.cumsum(programs) - programs, programs))
    size = like.element_size()
    columns = (
        weights[owner] + size * width * first,
        biases[owner] + size * first,
        rows[owner],
        places[owner] + first,
        np.minimum(outputs[owner] - first, BLOCK_OUT),
    )
    return np.stack(columns, axis=1)


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
