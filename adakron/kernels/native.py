"""The kernels of native.cpp, called on torch's memory.

Calls hold no interpreter lock and run on torch's own OpenMP threads. Knows addresses and tiles; the arithmetic is in
native.cpp.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adakron.bank import BankView
from adakron.kernels.interface import Embeddings, Norm
from adakron.kernels.tiles import Passes, segments_of
from adakron.plan import Stage

TILE_TOKENS = 48  # what one thread takes at a time: some blocks of native.cpp's TOKENS

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class _Site(Structure):
    _fields_ = (
        ("down", c_void_p),
        ("down_bias", c_void_p),
        ("up", c_void_p),
        ("up_bias", c_void_p),
        ("down_stride", c_int64),
        ("down_bias_stride", c_int64),
        ("up_stride", c_int64),
        ("up_bias_stride", c_int64),
        ("factor", c_int),
        ("quotient", c_int),
    )


class NativeKernels:
    """For one encoder: its number of heads, its dtype (float32 or bfloat16)."""

    name = "native"

    def __init__(self, library: ctypes.CDLL, heads: int, dtype: torch.dtype) -> None:
        self.heads, self.dtype = heads, dtype
        pointers_and_ints = {
            "embed": (*(c_void_p,) * 8, c_float, *(c_int,) * 2, c_void_p, c_int),
            "gelu": (c_void_p, c_int64, c_int),
            "attend": (*(c_void_p,) * 4, *(c_int,) * 4),
            "adapt_add_norm": (
                *(c_void_p,) * 3,
                c_int,
                c_void_p,
                c_int,
                POINTER(_Site),
                *(c_void_p,) * 2,
                c_float,
                c_int,
            ),
        }
        self.functions: dict[str, Any] = {}
        for name, types in pointers_and_ints.items():
            function = getattr(library, f"{name}_{_SUFFIXES[dtype]}")
            function.argtypes, function.restype = types, None
            self.functions[name] = function

    def embed(self, tables: Embeddings, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        words, norm = tables.words, tables.norm
        for values, table in ((ids, words), (type_ids, tables.types), (positions, tables.positions)):
            least, most = values.aminmax()
            if table is not None and not 0 <= int(least) <= int(most) < len(table):
                raise IndexError(f"expected numbers from 0 to {len(table) - 1}; got {int(least)} to {int(most)}")
        out = words.new_empty(len(ids), words.shape[1])
        self.functions["embed"](
            words.data_ptr(),
            0 if tables.types is None else tables.types.data_ptr(),
            tables.positions.data_ptr(),
            ids.data_ptr(),
            type_ids.data_ptr(),
            positions.data_ptr(),
            norm.weight.data_ptr(),
            norm.bias.data_ptr(),
            norm.eps,
            len(ids),
            words.shape[1],
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def begin(self, stage: Stage, view: BankView) -> "NativeWork":
        return NativeWork(self, stage, view)


class NativeWork:
    def __init__(self, kernels: NativeKernels, stage: Stage, view: BankView) -> None:
        self._functions, self._heads, self._view, self._stage = kernels.functions, kernels.heads, view, stage
        self._threads = torch.get_num_threads()
        self._passes = Passes(segments_of(stage), stage.n_tokens, tile_tokens=TILE_TOKENS)

    def attend(self, qkv: Tensor) -> Tensor:
        width = qkv.shape[1] // 3
        out = qkv.new_empty(qkv.shape[0], width)
        stage = self._stage
        self._functions["attend"](
            qkv.data_ptr(),
            out.data_ptr(),
            stage.starts.ctypes.data,
            stage.lengths.ctypes.data,
            len(stage.starts),
            self._heads,
            width // self._heads,
            self._threads,
        )
        return out

    def gelu(self, x: Tensor) -> Tensor:
        self._functions["gelu"](x.data_ptr(), x.numel(), self._threads)
        return x

    def add_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        self._launch(x, residual, norm, self._passes.plain, _Site())
        return x

    def adapt_add_norm(self, x: Tensor, residual: Tensor, norm: Norm, layer: int) -> Tensor:
        return self._adapt(x, residual, norm, layer)

    def adapt_add(self, x: Tensor, residual: Tensor, layer: int) -> Tensor:
        return self._adapt(x, residual, None, layer)

    def _adapt(self, x: Tensor, residual: Tensor, norm: Norm | None, layer: int) -> Tensor:
        for launch in self._passes.at(layer):
            site = _Site()
            if launch.shape is not None:
                tensors = self._view.site(launch.shape, layer)
                parts = [tensors[name] for name in ("down", "down_bias", "up", "up_bias")]
                addresses = (part.data_ptr() for part in parts)
                strides = (part.stride(0) for part in parts)
                site = _Site(*addresses, *strides, launch.shape.factor, launch.shape.quotient)
            self._launch(x, residual, norm, launch.tiles, site)
        return x

    def _launch(self, x: Tensor, residual: Tensor, norm: Norm | None, tiles: np.ndarray, site: _Site) -> None:
        """Into x itself: a token is read before it is written, and by nobody else."""
        self._functions["adapt_add_norm"](
            x.data_ptr(),
            residual.data_ptr(),
            x.data_ptr(),
            x.shape[1],
            tiles.ctypes.data,
            len(tiles),
            byref(site),
            0 if norm is None else norm.weight.data_ptr(),
            0 if norm is None else norm.bias.data_ptr(),
            0.0 if norm is None else norm.eps,
            self._threads,
        )


def row_means(library: ctypes.CDLL, hidden: Tensor, starts: np.ndarray, lengths: np.ndarray) -> Tensor:
    """The mean over each row's tokens: hidden [T, D] contiguous, starts and lengths [B] int64 -> [B, D] float32."""
    out = torch.empty(len(starts), hidden.shape[1])
    function = getattr(library, f"row_means_{_SUFFIXES[hidden.dtype]}")
    function.argtypes, function.restype = (*(c_void_p,) * 3, c_int, c_int, c_void_p, c_int), None
    function(
        hidden.data_ptr(),
        starts.ctypes.data,
        lengths.ctypes.data,
        len(starts),
        hidden.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def products(weights: Tensor, biases: Tensor, slots: Sequence[int], rows: Sequence[int], begin: int) -> np.ndarray:
    """Products for `grouped_products`, one a row, with maps of one width: out[b : b + L] = weight x[row] + bias.

    weights [S, L, D], biases [S, L]  contiguous in each slot
    begin                             b of the first; the others follow it
    """
    table = np.empty((len(slots), 5), dtype=np.int64)
    width, number = weights.shape[1], np.array(slots, dtype=np.int64)
    table[:, 0] = weights.data_ptr() + number * (weights.stride(0) * weights.itemsize)
    table[:, 1] = biases.data_ptr() + number * (biases.stride(0) * biases.itemsize)
    table[:, 2], table[:, 3] = rows, width
    table[:, 4] = begin + width * np.arange(len(slots))
    return table


def grouped_products(
    library: ctypes.CDLL, x: Tensor, dtype: torch.dtype, tables: Sequence[np.ndarray], out: Tensor
) -> None:
    """All products of a batch in one call, whatever their widths.

    x       [B, D] float32, contiguous
    dtype   of all weights and biases, float32 or bfloat16; they stay where they are until the call is over
    tables  made by `products`
    out     [N] float32, contiguous; every product's place in it is written
    """
    table = np.concatenate(tables)
    function = getattr(library, f"grouped_products_{_SUFFIXES[dtype]}")
    function.argtypes, function.restype = (c_void_p, c_int, c_void_p, c_int, c_void_p, c_int), None
    function(x.data_ptr(), x.shape[1], table.ctypes.data, len(table), out.data_ptr(), torch.get_num_threads())
