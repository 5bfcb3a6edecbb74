"""Attention within each row of packed tokens as one Triton kernel, rows of any length side by side.

torch.nn.attention.varlen is flash attention for the same layout. It is not used: it has no float32, runs on no CPU (so
nothing could be proven without a card), takes the longest row as an argument of the launch (so that a captured launch
would have to assume the longest row there may be), and splits keys as the batch's size suggests, which makes a row's
last bits depend on its batch-mates. It gains on long rows; those of classifiers are short.

Importing it needs triton. Knows tiles and tensors; nothing of layers or adapters. Where TRITON_INTERPRET=1 is set
before triton is first imported, it runs on CPU tensors.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from adakron.errors import ShapeError

TILE_TOKENS = 32  # queries of one program, and keys that it takes at a time
SMALLEST_DOT = 16


def attend(qkv: Tensor, tiles: Tensor, heads: int, out: Tensor) -> None:
    """Write softmax(q k^T / sqrt(D / H)) v for the queries of some tiles, head by head, keys of the query's row alone.

    qkv    [T, 3 D], contiguous: q, k and v of each token, each of them H heads of D / H numbers
    tiles  [N, 3] int32, contiguous: a first query, and the begin and end of its row; the tile's queries are the
           TILE_TOKENS from there, as far as the row goes. begin == end: nothing
    heads  H
    out    [T, D], contiguous; only the tiles' queries are written. Shares no memory with qkv

    Of one dtype: float32, float16 or bfloat16; sums and the softmax are float32, and only the softmax's weights are
    rounded to the dtype between. What is computed for a token depends on its own row alone, to the last bit.
    Raises ShapeError. The tiles are trusted: one beyond T reads foreign memory.
    """
    width = out.shape[-1]
    if qkv.ndim != 2 or qkv.shape[1] != 3 * width or out.shape != (qkv.shape[0], width) or width % heads:
        raise ShapeError(f"expected qkv [T, 3 D] and out [T, D], D in {heads} heads; got {qkv.shape} and {out.shape}")
    if qkv.dtype != out.dtype or not (qkv.is_contiguous() and out.is_contiguous()):
        raise ShapeError(f"expected qkv and out contiguous, of one dtype; got {qkv.dtype} and {out.dtype}")
    if tiles.ndim != 2 or tiles.shape[1] != 3 or tiles.dtype != torch.int32 or not tiles.is_contiguous():
        raise ShapeError(f"tiles: expected [N, 3] int32, contiguous; got {tuple(tiles.shape)} {tiles.dtype}")
    if not len(tiles):
        return
    head_width = width // heads
    block = max(SMALLEST_DOT, triton.next_power_of_2(head_width))
    _attend[(len(tiles) * heads,)](
        qkv,
        tiles,
        out,
        math.log2(math.e) / math.sqrt(head_width),
        HEADS=heads,
        HEAD_WIDTH=head_width,
        BLOCK_T=TILE_TOKENS,
        BLOCK_H=block,
        num_warps=2 if block <= 64 else 4,
        num_stages=2,  # rows are short, and 128 numbers a head in float32 fill the smaller cards' shared memory
    )


@triton.jit
def _attend(
    qkv: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One program: one tile of one head. Neighbouring programs take the heads of the same tokens.

    scale: log2(e) / sqrt(D / H), so that the softmax is one of powers of two. Blocks of keys begin at the row's first
    token, wherever that lies: their sums are the same in every batch.
    """
    WIDTH: tl.constexpr = HEADS * HEAD_WIDTH
    tile = tiles + 3 * (tl.program_id(0) // HEADS)
    first, end = tl.load(tile + 1), tl.load(tile + 2)
    if first == end:
        return
    column = tl.arange(0, BLOCK_H)[None, :]
    real = column < HEAD_WIDTH
    column += tl.program_id(0) % HEADS * HEAD_WIDTH

    queries = tl.load(tile) + tl.arange(0, BLOCK_T)[:, None]
    inside = (queries < end) & real
    tokens = queries.to(tl.int64)
    q = tl.load(qkv + tokens * (3 * WIDTH) + column, mask=inside, other=0)
    largest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    context = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for start in tl.range(first, end, BLOCK_T):
        keys = start + tl.arange(0, BLOCK_T)
        there = (keys < end)[:, None] & real
        places = qkv + keys.to(tl.int64)[:, None] * (3 * WIDTH) + column
        k = tl.load(places + WIDTH, mask=there, other=0)
        v = tl.load(places + 2 * WIDTH, mask=there, other=0)
        # Three tf32 products together are as exact as float32; for 16-bit operands the option means nothing.
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        scores = tl.where((keys < end)[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        context = tl.dot(weights.to(v.dtype), v, context * shrink[:, None], input_precision="tf32x3")
        largest = larger
    value = context / total[:, None]
    tl.store(out + tokens * WIDTH + column, value.to(out.dtype.element_ty), mask=inside)
