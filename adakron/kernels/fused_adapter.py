"""The adapters of a whole batch, both residuals and the LayerNorm of a layer as one Triton kernel.

Importing it needs triton. Knows tiles and tensors; nothing of rows, batches or the encoder. Where TRITON_INTERPRET=1 is
set before triton is first imported, it runs on CPU tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from adakron.bank import SiteShape
from adakron.errors import ShapeError
from adakron.kernels.interface import Norm

TILE_TOKENS = 16
# Divides the widths of the common encoders; 64 columns at a time keep 1024 of them within 128 registers a thread.
BLOCK_D = 64
SMALLEST_DOT = 16
VECTOR_BYTES = 16


@dataclass(frozen=True, slots=True)
class ShelfTable:
    """Where the tensors of one shelf lie.

    width, dtype   of the tokens that its adapters take
    addresses  [layers, 4] int64: of down, down_bias, up, up_bias in slot 0 of each layer
    strides    of the same four, from slot to slot, in numbers

    The kernel finds weights by address, so that a captured launch serves a shelf that has moved since: the table is
    data, copied with every batch. Whoever uses it keeps the tensors alive.
    """

    shape: SiteShape
    width: int
    dtype: torch.dtype
    addresses: np.ndarray
    strides: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Site:
    """One layer of a shelf. addresses [4] int64: that layer's row of the shelf's table, on the device."""

    shelf: ShelfTable
    addresses: Tensor


def shelf_table(shape: SiteShape, tensors: Mapping[str, Tensor]) -> ShelfTable:
    """The table of a shelf whose slots lie anywhere, each layer's numbers together.

    tensors  down [S, layers, K + Q, D], down_bias [S, layers, K + Q], up [S, layers, K * Q, D] (B transposed), up_bias
             [S, layers, D], of one dtype

    Raises ShapeError.
    """
    rows, bottleneck = shape.factor + shape.quotient, shape.factor * shape.quotient
    width, dtype = tensors["up_bias"].shape[-1], tensors["up_bias"].dtype
    expected = {"down": (rows, width), "down_bias": (rows,), "up": (bottleneck, width), "up_bias": (width,)}
    slots_and_layers = tensors["down"].shape[:2]
    for name, part in expected.items():
        if tensors[name].shape[:2] != slots_and_layers:
            raise ShapeError(f"{name}: expected {tuple(slots_and_layers)} slots and layers, as many as down has")
        _require(f"{name}[slot, layer]", tensors[name][0, 0], part, dtype)
    layers = np.arange(slots_and_layers[1], dtype=np.int64)
    parts = [tensors[name] for name in expected]
    columns = [part.data_ptr() + layers * part.stride(1) * part.element_size() for part in parts]
    down, down_bias, up, up_bias = (part.stride(0) for part in parts)
    return ShelfTable(shape, width, dtype, np.stack(columns, axis=1), (down, down_bias, up, up_bias))


def adapt_add_norm(x: Tensor, residual: Tensor, norm: Norm, tiles: Tensor, site: Site | None, out: Tensor) -> None:
    """Write the layer's output for the tokens of some tiles.

        u, v = A2[s] x + b2[s], A1[s] x + b1[s]        s: the slot of the token's tile
        z    = gelu(u (x) v)                           element (i, j) of u, v at index i * Q + j; erf form
        out  = LayerNorm(x + B[s] z + c[s] + residual)

    x, residual  [T, D], contiguous: the site's output, which is the adapter's input and its inner residual, and what
                 the encoder's layer adds
    tiles        [N, 3] int32, contiguous: slot, begin, end of at most TILE_TOKENS tokens; begin == end: nothing
    site         where the adapters of this layer are; None if every slot is 0
    out          [T, D], contiguous; only the tiles' tokens are written. Shares no memory with x or residual

    All of one dtype: float32, float16 or bfloat16; sums are float32, and only z is rounded to the dtype between. Tokens
    of slot 0 read no adapter. A NaN stays in its own token, and a bad adapter in its own tokens. What is computed for a
    token depends on its own numbers alone, to the last bit.
    Raises ShapeError. Tiles and site are trusted: a token beyond T, or a slot beyond S, reads foreign memory.
    """
    if x.ndim != 2:
        raise ShapeError(f"x: expected [T, D]; got {tuple(x.shape)}")
    width = x.shape[1]
    for name, tensor, expected in (
        ("x", x, tuple(x.shape)),
        ("residual", residual, tuple(x.shape)),
        ("out", out, tuple(x.shape)),
        ("weight", norm.weight, (width,)),
        ("bias", norm.bias, (width,)),
    ):
        _require(name, tensor, expected, x.dtype)
    _require("tiles", tiles, (len(tiles), 3), torch.int32)
    factor = quotient = 0
    if site is not None:
        _require("addresses", site.addresses, (4,), torch.int64)
        if (site.shelf.width, site.shelf.dtype) != (width, x.dtype):
            raise ShapeError(f"the shelf takes [T, {site.shelf.width}] {site.shelf.dtype}; x is [T, {width}] {x.dtype}")
        factor, quotient = site.shelf.shape.factor, site.shelf.shape.quotient
    if not len(tiles):
        return
    _adapt_add_norm[(len(tiles),)](
        x,
        residual,
        out,
        tiles,
        None if site is None else site.addresses,
        norm.weight,
        norm.bias,
        norm.eps,
        *((0, 0, 0, 0) if site is None else site.shelf.strides),
        D=width,
        K=factor,
        Q=quotient,
        ROW_BYTES=VECTOR_BYTES if width * x.element_size() % VECTOR_BYTES == 0 else x.element_size(),
        BLOCK_T=TILE_TOKENS,
        BLOCK_D=BLOCK_D,
        BLOCK_KQ=max(SMALLEST_DOT, triton.next_power_of_2(factor + quotient)),
        BLOCK_R=max(SMALLEST_DOT, triton.next_power_of_2(factor * quotient)),
        **_options(x),
    )


def _options(x: Tensor) -> dict[str, int]:
    """How the kernel is compiled. Two programs of 8 warps fit a multiprocessor's 65,536 registers at 128 a thread.

    float32 operands need twice the registers, and a cap would only spill more of them.
    """
    warps = 4 if x.shape[1] <= 512 else 8
    return {"num_warps": warps} if x.dtype == torch.float32 else {"num_warps": warps, "maxnreg": 128}


def _require(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ShapeError(
            f"{name}: expected {shape} of {dtype}, contiguous; got {tuple(tensor.shape)} of {tensor.dtype} "
            f"with strides {tensor.stride()}"
        )


@triton.jit
def _adapt_add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    addresses: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    down_stride: tl.tensor,
    down_bias_stride: tl.tensor,
    up_stride: tl.tensor,
    up_bias_stride: tl.tensor,
    D: tl.constexpr,
    K: tl.constexpr,
    Q: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_KQ: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """One program, one tile: BLOCK_T tokens, of which those from `end` on are another tile's and stay untouched.

    A row of D columns is a tuple of blocks of BLOCK_D: it stays in registers from its sum to its norm, and D need not
    be a power of two. ROW_BYTES divides the address of every row of D numbers.
    """
    tile = tiles + 3 * tl.program_id(0)
    begin, end = tl.load(tile + 1), tl.load(tile + 2)
    if begin == end:
        return
    # 64 bits: the offset of slot 5,000 in BERT-base's shelf is beyond 2**31.
    slot = tl.load(tile).to(tl.int64)
    tokens = begin + tl.arange(0, BLOCK_T)
    inside = (tokens < end)[:, None]
    rows = tokens.to(tl.int64)[:, None] * D

    y = _sum(x + rows, residual + rows, inside, D, BLOCK_D)
    if K > 0 and slot != 0:
        number: tl.constexpr = tl.pointer_type(x.dtype.element_ty)
        down = tl.multiple_of(tl.load(addresses).to(number), ROW_BYTES) + slot * down_stride
        down_bias = tl.load(addresses + 1).to(number) + slot * down_bias_stride
        up = tl.multiple_of(tl.load(addresses + 2).to(number), ROW_BYTES) + slot * up_stride
        up_bias = tl.multiple_of(tl.load(addresses + 3).to(number), ROW_BYTES) + slot * up_bias_stride
        z = _bottleneck(x + rows, inside, down, down_bias, D, K, Q, BLOCK_T, BLOCK_D, BLOCK_KQ, BLOCK_R)
        y = _up(y, z.to(x.dtype.element_ty), up, up_bias, D, K * Q)
    _store_norm(out + rows, inside, y, weight, bias, eps, D)


@triton.jit
def _columns(number: tl.constexpr, BLOCK_D: tl.constexpr, D: tl.constexpr) -> tl.tuple:
    """The columns of one block of a row, and which of them there are."""
    columns = number * BLOCK_D + tl.arange(0, BLOCK_D)
    return columns, columns < D


@triton.jit
def _vector(pointer: tl.tensor, columns: tl.tensor, real: tl.tensor) -> tl.tensor:
    """Some columns of a vector [D], as a row [1, BLOCK_D] float32, 0 beyond D."""
    return tl.load(pointer + columns, mask=real, other=0).to(tl.float32)[None, :]


@triton.jit
def _sum(x: tl.tensor, residual: tl.tensor, inside: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr) -> tl.tuple:
    """X + residual, as a tuple of blocks [BLOCK_T, BLOCK_D] float32, 0 outside."""
    blocks: tl.tuple = ()
    for number in tl.static_range((D + BLOCK_D - 1) // BLOCK_D):
        columns, real = _columns(number, BLOCK_D, D)
        mask = inside & real[None, :]
        left = tl.load(x + columns[None, :], mask=mask, other=0).to(tl.float32)
        right = tl.load(residual + columns[None, :], mask=mask, other=0).to(tl.float32)
        blocks = blocks + (left + right,)  # noqa: RUF005 - Triton knows no unpacking here
    return blocks


@triton.jit
def _bottleneck(
    x: tl.tensor,
    inside: tl.tensor,
    down: tl.tensor,
    down_bias: tl.tensor,
    D: tl.constexpr,
    K: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_KQ: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> tl.tensor:
    """gelu(u (x) v): [BLOCK_T, BLOCK_R] float32, 0 from K * Q on. x is read a second time, from the cache."""
    kq = tl.arange(0, BLOCK_KQ)
    present = kq < K + Q
    uv = tl.zeros((BLOCK_T, BLOCK_KQ), tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        real = columns < D
        part = tl.load(x + columns[None, :], mask=inside & real[None, :], other=0)
        rows = tl.load(down + kq[None, :] * D + columns[:, None], mask=present[None, :] & real[:, None], other=0)
        # Three tf32 products together are as exact as float32; for 16-bit operands the option means nothing.
        uv = tl.dot(part, rows, uv, input_precision="tf32x3")
    uv += _vector(down_bias, kq, present)

    r = tl.arange(0, BLOCK_R)
    real = r < K * Q
    u = tl.gather(uv, tl.broadcast_to(tl.where(real, r // Q, 0)[None, :], (BLOCK_T, BLOCK_R)), 1)
    v = tl.gather(uv, tl.broadcast_to(tl.where(real, K + r % Q, 0)[None, :], (BLOCK_T, BLOCK_R)), 1)
    z = u * v
    return tl.where(real[None, :], 0.5 * z * (1 + tl.erf(z * 0.7071067811865476)), 0)


@triton.jit
def _up(y: tl.tuple, z: tl.tensor, up: tl.tensor, up_bias: tl.tensor, D: tl.constexpr, R: tl.constexpr) -> tl.tuple:
    """Y + B z + c, block by block. up [R, D]."""
    r = tl.arange(0, z.shape[1])
    blocks: tl.tuple = ()
    for number in tl.static_range(len(y)):
        columns, real = _columns(number, y[0].shape[1], D)
        weight = tl.load(up + r[:, None] * D + columns[None, :], mask=(r < R)[:, None] & real[None, :], other=0)
        block = tl.dot(z, weight, y[number] + _vector(up_bias, columns, real), input_precision="tf32x3")
        blocks = blocks + (block,)  # noqa: RUF005
    return blocks


@triton.jit
def _store_norm(
    out: tl.tensor,
    inside: tl.tensor,
    y: tl.tuple,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    D: tl.constexpr,
) -> None:
    """LayerNorm(y), the variance from the centred values."""
    BLOCK_D: tl.constexpr = y[0].shape[1]
    total = y[0]
    for number in tl.static_range(1, len(y)):
        total += y[number]
    mean = tl.sum(total, 1)[:, None] / D
    square = tl.zeros_like(total)
    for number in tl.static_range(len(y)):
        _, real = _columns(number, BLOCK_D, D)
        centred = tl.where(real[None, :], y[number] - mean, 0)
        square += centred * centred
    scale = tl.rsqrt(tl.sum(square, 1)[:, None] / D + eps)
    for number in tl.static_range(len(y)):
        columns, real = _columns(number, BLOCK_D, D)
        value = (y[number] - mean) * scale * _vector(weight, columns, real) + _vector(bias, columns, real)
        tl.store(out + columns[None, :], value.to(out.dtype.element_ty), mask=inside & real[None, :])
