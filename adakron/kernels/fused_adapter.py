"""The adapters of a whole batch, both residuals and the LayerNorm of a layer as one Triton kernel.

Importing it needs triton. Knows tiles and tensors; nothing of rows, batches or the encoder. Where TRITON_INTERPRET=1 is
set before triton is first imported, it runs on CPU tensors.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from adakron.errors import ShapeError
from adakron.kernels.tiles import TILE_TOKENS, Pass

# Divides the widths of the common encoders; 64 columns at a time keep 1024 of them within 128 registers a thread.
BLOCK_D = 64
SMALLEST_DOT = 16


def adapt_add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    launch: Pass,
    site: Mapping[str, Tensor] | None,
    out: Tensor,
) -> None:
    """Write the layer's output for the tokens of one launch.

        u, v = A2[s] x + b2[s], A1[s] x + b1[s]        s: the slot of the token's tile
        z    = gelu(u (x) v)                           element (i, j) of u, v at index i * Q + j; erf form
        out  = LayerNorm(x + B[s] z + c[s] + residual)

    x, residual  [T, D], contiguous: the site's output, which is the adapter's input and its inner residual, and what
                 the encoder's layer adds
    weight, bias [D], eps: the LayerNorm's
    site         one layer of the shelf `launch.shape`: down [S, K + Q, D], down_bias [S, K + Q], up [S, D, K * Q],
                 up_bias [S, D], rows contiguous, any stride from slot to slot; None if launch.shape is None
    out          [T, D], contiguous; only the launch's tokens are written. Shares no memory with x or residual

    All of one dtype: float32, float16 or bfloat16; sums are float32, and only z is rounded to the dtype between. Tokens
    of slot 0 read no adapter. A NaN stays in its own token, and a bad adapter in its own tokens.
    Raises ShapeError. The tiles are trusted: one beyond T, or a slot beyond S, reads foreign memory.
    """
    width, options = _checked_width(x, residual, out, weight, bias), _options(x)
    factor = quotient = 0
    down = down_bias = up = up_bias = None
    strides = (0, 0, 0, 0)
    if launch.shape is not None and site is not None:
        factor, quotient = launch.shape.factor, launch.shape.quotient
        down, down_bias, up, up_bias = _checked_site(site, factor, quotient, x)
        strides = (down.stride(0), down_bias.stride(0), up.stride(0), up_bias.stride(0))
    elif launch.shape is not None or site is not None:
        raise ShapeError("a launch of a shelf needs that shelf's tensors, any other launch none")
    if not len(launch.tiles):
        return
    _adapt_add_norm[(len(launch.tiles),)](
        x,
        residual,
        out,
        launch.tiles,
        down,
        down_bias,
        up,
        up_bias,
        weight,
        bias,
        eps,
        *strides,
        D=width,
        K=factor,
        Q=quotient,
        BLOCK_T=TILE_TOKENS,
        BLOCK_D=BLOCK_D,
        BLOCK_KQ=max(SMALLEST_DOT, triton.next_power_of_2(factor + quotient)),
        BLOCK_R=max(SMALLEST_DOT, triton.next_power_of_2(factor * quotient)),
        **options,
    )


def _options(x: Tensor) -> dict[str, int]:
    """How the kernel is compiled. Two programs of 8 warps fit a multiprocessor's 65,536 registers at 128 a thread.

    float32 operands need twice the registers, and a cap would only spill more of them.
    """
    warps = 4 if x.shape[1] <= 512 else 8
    return {"num_warps": warps} if x.dtype == torch.float32 else {"num_warps": warps, "maxnreg": 128}


def _checked_width(x: Tensor, residual: Tensor, out: Tensor, weight: Tensor, bias: Tensor) -> int:
    if x.ndim != 2:
        raise ShapeError(f"x: expected [T, D]; got {tuple(x.shape)}")
    for name, tensor in (("x", x), ("residual", residual), ("out", out)):
        _require(name, tensor, tuple(x.shape), x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        _require(name, tensor, (x.shape[1],), x)
    return x.shape[1]


def _checked_site(site: Mapping[str, Tensor], factor: int, quotient: int, x: Tensor) -> tuple[Tensor, ...]:
    width, slots = x.shape[1], site["down"].shape[0]
    shapes = {
        "down": (factor + quotient, width),
        "down_bias": (factor + quotient,),
        "up": (width, factor * quotient),
        "up_bias": (width,),
    }
    for name, shape in shapes.items():
        if site[name].shape[0] != slots:
            raise ShapeError(f"{name}: expected {slots} slots, as many as down; got {site[name].shape[0]}")
        _require(f"{name}[slot]", site[name][0], shape, x)
    return tuple(site[name] for name in shapes)


def _require(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tensor.shape != shape or tensor.dtype != like.dtype or not tensor.is_contiguous():
        raise ShapeError(
            f"{name}: expected {shape} of {like.dtype}, contiguous; got {tuple(tensor.shape)} of {tensor.dtype} "
            f"with strides {tensor.stride()}"
        )


# What differs from layer to layer or batch to batch must not ask for another compilation: the address of the tiles,
# which follow others in one buffer, and that of down_bias, whose layers lie a few numbers apart.
@triton.jit(do_not_specialize_on_alignment=["tiles", "down_bias"])
def _adapt_add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    down: tl.tensor,
    down_bias: tl.tensor,
    up: tl.tensor,
    up_bias: tl.tensor,
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
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_KQ: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """One program, one tile: BLOCK_T tokens, of which those from `end` on are another tile's and stay untouched.

    A row of D columns is a tuple of blocks of BLOCK_D: it stays in registers from its sum to its norm, and D need not
    be a power of two.
    """
    tile = tiles + 3 * tl.program_id(0)
    # 64 bits: the offset of slot 5,000 in BERT-base's shelf is beyond 2**31.
    slot = tl.load(tile).to(tl.int64)
    tokens = tl.load(tile + 1) + tl.arange(0, BLOCK_T)
    inside = (tokens < tl.load(tile + 2))[:, None]
    rows = tokens.to(tl.int64)[:, None] * D

    y = _sum(x + rows, residual + rows, inside, D, BLOCK_D)
    if K > 0 and slot != 0:
        z = _bottleneck(
            x + rows,
            inside,
            down + slot * down_stride,
            down_bias + slot * down_bias_stride,
            D,
            K,
            Q,
            BLOCK_T,
            BLOCK_D,
            BLOCK_KQ,
            BLOCK_R,
        )
        y = _up(y, z.to(x.dtype.element_ty), up + slot * up_stride, up_bias + slot * up_bias_stride, D, K * Q)
    _store_norm(out + rows, inside, y, weight, bias, eps, D)


@triton.jit
def _sum(x: tl.tensor, residual: tl.tensor, inside: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr) -> tl.tuple:
    """X + residual, as a tuple of blocks [BLOCK_T, BLOCK_D] float32, 0 outside."""
    blocks: tl.tuple = ()
    for start in tl.static_range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)[None, :]
        mask = inside & (columns < D)
        left = tl.load(x + columns, mask=mask, other=0).to(tl.float32)
        right = tl.load(residual + columns, mask=mask, other=0).to(tl.float32)
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
    uv = tl.zeros((BLOCK_T, BLOCK_KQ), tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        part = tl.load(x + columns[None, :], mask=inside & (columns < D)[None, :], other=0)
        rows = tl.load(
            down + kq[None, :] * D + columns[:, None], mask=(kq < K + Q)[None, :] & (columns < D)[:, None], other=0
        )
        # Three tf32 products together are as exact as float32; for 16-bit operands the option means nothing.
        uv = tl.dot(part, rows, uv, input_precision="tf32x3")
    uv += tl.load(down_bias + kq, mask=kq < K + Q, other=0).to(tl.float32)[None, :]

    r = tl.arange(0, BLOCK_R)
    real = r < K * Q
    u = tl.gather(uv, tl.broadcast_to(tl.where(real, r // Q, 0)[None, :], (BLOCK_T, BLOCK_R)), 1)
    v = tl.gather(uv, tl.broadcast_to(tl.where(real, K + r % Q, 0)[None, :], (BLOCK_T, BLOCK_R)), 1)
    z = u * v
    return tl.where(real[None, :], 0.5 * z * (1 + tl.erf(z * 0.7071067811865476)), 0)


@triton.jit
def _up(y: tl.tuple, z: tl.tensor, up: tl.tensor, up_bias: tl.tensor, D: tl.constexpr, R: tl.constexpr) -> tl.tuple:
    """Y + B z + c, block by block."""
    BLOCK_D: tl.constexpr = y[0].shape[1]
    r = tl.arange(0, z.shape[1])
    blocks: tl.tuple = ()
    for number in tl.static_range(len(y)):
        columns = number * BLOCK_D + tl.arange(0, BLOCK_D)
        weight = tl.load(
            up + columns[None, :] * R + r[:, None], mask=(columns < D)[None, :] & (r < R)[:, None], other=0
        )
        shift = tl.load(up_bias + columns, mask=columns < D, other=0).to(tl.float32)
        block = tl.dot(z, weight, y[number] + shift[None, :], input_precision="tf32x3")
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
        columns = number * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        centred = tl.where(columns < D, y[number] - mean, 0)
        square += centred * centred
    scale = tl.rsqrt(tl.sum(square, 1)[:, None] / D + eps)
    for number in tl.static_range(len(y)):
        columns = number * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        gain = tl.load(weight + columns, mask=columns < D, other=0).to(tl.float32)
        shift = tl.load(bias + columns, mask=columns < D, other=0).to(tl.float32)
        value = (y[number] - mean) * scale * gain + shift
        tl.store(out + columns, value.to(out.dtype.element_ty), mask=inside & (columns < D))
