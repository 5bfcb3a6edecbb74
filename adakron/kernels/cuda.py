"""The kernels for CUDA: what lies between an encoder's linear maps as Triton kernels, one launch each.

A stage is laid out once: its work lists and the addresses of its adapters go to the device in one copy, and every layer
reads them there. What is in a batch decides nothing but those tables, and no token's numbers depend on its neighbours.
Where batch-invariant answers are asked for, tokens without adapter have launches of their own: a row's values then are
the same to the last bit in every batch, as far as the linear maps between them see to it. Importing it needs triton.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adakron.bank import BankView, SiteShape
from adakron.kernels import fused_adapter, varlen_attention
from adakron.kernels.fused_adapter import ShelfTable, Site, adapt_add_norm, shelf_table
from adakron.kernels.grouped_heads import compile_heads
from adakron.kernels.interface import Embeddings, Norm
from adakron.kernels.tables import Tables
from adakron.kernels.tiles import Passes, query_tiles, segments_of
from adakron.kernels.varlen_attention import attend
from adakron.plan import SiteGroup, Stage


class TritonKernels:
    """For one encoder: its number of heads, its width D, its dtype, its device; invariant: see the module's text."""

    name = "triton"

    def __init__(
        self, heads: int, width: int, dtype: torch.dtype, device: torch.device, *, invariant: bool = False
    ) -> None:
        self.heads, self.width, self.dtype, self.device, self.invariant = heads, width, dtype, device, invariant
        self._compiled: set[SiteShape | None] = set()

    def embed(self, tables: Embeddings, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        return tables(ids, type_ids, positions)

    def begin(self, stage: Stage, view: BankView) -> "TritonWork":
        shelves = shelves_of(view, [group.shape for group in stage.groups])
        tables = Tables.of(stage_arrays(stage, shelves, self.invariant), self.device)
        return TritonWork(self.heads, shelves, tables.tensors, self.invariant)

    def compile(self, view: BankView) -> None:
        """Compile whatever a batch may launch on these shelves, heads included, by running it on one token.

        Takes seconds for every shape of adapter that is new, and nothing for the others.
        """
        for shape in (None, *view.shapes):
            if shape in self._compiled:
                continue
            first = 0
            groups: tuple[SiteGroup, ...] = ()
            if shape is not None:
                first, groups = shape.first_layer, (SiteGroup(shape, 0, 1, 0, 1, slots=np.zeros(1, np.int64)),)
            start, length = np.zeros(1, np.int64), np.ones(1, np.int64)
            work = self.begin(Stage(first, None, None, start, length, groups), view)
            if shape is None:
                compile_heads(self.width, self.dtype, self.device)
            x = work.attend(torch.zeros(1, 3 * self.width, dtype=self.dtype, device=self.device))
            work.adapt_add_norm(x, x, Norm(x[0], x[0], 1.0), first)
            self._compiled.add(shape)


class TritonWork:
    """A stage whose tables are `tensors`: those of `stage_arrays`, which may be filled anew between two forwards."""

    def __init__(
        self, heads: int, shelves: Sequence[ShelfTable], tensors: Sequence[Tensor], invariant: bool = False
    ) -> None:
        self._heads = heads
        rest = iter(tensors)
        self._queries, self._plain = next(rest), next(rest)
        rows = {shelf.shape: (shelf, next(rest).unbind()) for shelf in shelves}
        self._first_layers = _first_layers(shelves)
        # For each first layer, the tiles of a launch and where its shelf's adapters are, layer by layer.
        self._launches = [
            [(next(rest), None if shape is None else rows[shape]) for shape in _launched(shelves, first, invariant)]
            for first in self._first_layers
        ]

    def attend(self, qkv: Tensor) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
        attend(qkv, self._queries, self._heads, out)
        return out

    def gelu(self, x: Tensor) -> Tensor:
        """torch's own pass: the product before it could take GELU along in its tanh form alone."""
        return F.gelu(x)

    def add_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        out = torch.empty_like(x)
        adapt_add_norm(x, residual, norm, self._plain, None, out)
        return out

    def adapt_add_norm(self, x: Tensor, residual: Tensor, norm: Norm, layer: int) -> Tensor:
        out = torch.empty_like(x)
        for tiles, row in self._launches[bisect_right(self._first_layers, layer) - 1]:
            site = None
            if row is not None:
                shelf, addresses = row
                site = Site(shelf, addresses[layer - shelf.shape.first_layer])
            adapt_add_norm(x, residual, norm, tiles, site, out)
        return out


def shelves_of(view: BankView, shapes: Sequence[SiteShape]) -> list[ShelfTable]:
    """Where the adapters of these shapes lie now; the view keeps them there."""
    return [shelf_table(shape, view.shelf(shape)) for shape in shapes]


def stage_arrays(stage: Stage, shelves: Sequence[ShelfTable], invariant: bool = False) -> list[np.ndarray]:
    """What the kernels read of one stage, for these shelves and no others: as many arrays for every stage.

    Queries' tiles; tiles of all tokens without adapter; each shelf's addresses; for each first layer, the tiles of
    every launch of the layers from there on.
    """
    segments = dict(segments_of(stage))
    groups = [(shelf.shape, segments.get(shelf.shape, [])) for shelf in shelves]
    passes = Passes(groups, stage.n_tokens, tile_tokens=fused_adapter.TILE_TOKENS, apart=invariant)
    launches = [launch.tiles for first in _first_layers(shelves) for launch in passes.at(first)]
    queries = query_tiles(stage.starts, stage.lengths, varlen_attention.TILE_TOKENS)
    return [queries, passes.plain, *(shelf.addresses for shelf in shelves), *launches]


def stage_capacity(shelves: Sequence[ShelfTable], tokens: int, rows: int, invariant: bool = False) -> list[np.ndarray]:
    """Arrays as large as `stage_arrays` can be for a stage of at most so many tokens and rows; empty tiles, no address.

    A row adds at most one tile that is not full: tiles are cut within rows, or within neighbours of one slot.
    """

    def tiles(tile_tokens: int, rows: int) -> np.ndarray:
        return np.zeros((tokens // tile_tokens + rows, 3), np.int32)

    launches = [shape for first in _first_layers(shelves) for shape in _launched(shelves, first, invariant)]
    return [
        tiles(varlen_attention.TILE_TOKENS, rows),
        tiles(fused_adapter.TILE_TOKENS, 1),
        *(np.zeros_like(shelf.addresses) for shelf in shelves),
        *(tiles(fused_adapter.TILE_TOKENS, rows) for _ in launches),
    ]


def _first_layers(shelves: Sequence[ShelfTable]) -> list[int]:
    """Where another set of launches begins."""
    return sorted({0, *(shelf.shape.first_layer for shelf in shelves)})


def _launched(shelves: Sequence[ShelfTable], layer: int, invariant: bool) -> list[SiteShape | None]:
    """The shelf of each launch of one layer, in the order of Passes.at."""
    present = [shelf.shape for shelf in shelves if shelf.shape.first_layer <= layer]
    return [None, *present] if invariant or not present else list(present)
