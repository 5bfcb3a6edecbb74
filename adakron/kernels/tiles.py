"""One batch cut into tiles, the tokens that one program of the fused adapter takes.

Made once a batch on the host, read by every layer. Knows tokens and slots; nothing of rows, weights or the kernel.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adakron.bank import SiteShape

TILE_TOKENS = 16


class Segment(NamedTuple):
    """The packed tokens [begin, end) of one batch, all of them in one slot of a shelf; slot 0 is the identity."""

    slot: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch: tiles of one shelf, and of tokens without adapter.

    shape  the shelf that the slots belong to; None where every slot is 0
    tiles  [N, 3] int32: slot, begin, end of at most TILE_TOKENS tokens; begin == end is a tile of nothing
    """

    shape: SiteShape | None
    tiles: Tensor


class Passes:
    """The launches of every layer of one batch. Those of one layer write each token exactly once.

    groups    for each shelf its segments in rising order; no two segments of a batch overlap
    n_tokens  tokens of the batch; those in no segment have no adapter, nor have those of a shelf below its first_layer
    """

    def __init__(
        self, groups: Sequence[tuple[SiteShape, Sequence[Segment]]], n_tokens: int, device: torch.device
    ) -> None:
        self._first_layers = sorted({0, *(shape.first_layer for shape, _ in groups)})
        shapes: list[list[SiteShape | None]] = []
        tiles: list[np.ndarray] = []
        for layer in self._first_layers:
            active = [(shape, list(segments)) for shape, segments in groups if shape.first_layer <= layer]
            gaps = uncovered([segment for _, segments in active for segment in segments], n_tokens)
            plain = list[tuple[SiteShape | None, list[Segment]]]([(None, [])])
            work = list(active) or plain
            work[0][1].extend(gaps)
            shapes.append([shape for shape, _ in work])
            tiles.extend(cut(merged(segments)) for _, segments in work)
        # One copy to the device for all of them.
        together = torch.from_numpy(np.concatenate(tiles)).to(device, non_blocking=True)
        parts = iter(torch.split(together, [len(part) for part in tiles]))
        self._passes = [tuple(Pass(shape, next(parts)) for shape in layer) for layer in shapes]

    def at(self, layer: int) -> tuple[Pass, ...]:
        """The launches of one layer, in any order."""
        return self._passes[bisect_right(self._first_layers, layer) - 1]


def merged(segments: Iterable[Segment]) -> list[Segment]:
    """Segments that follow each other in one slot made one: rows of one adapter share tiles."""
    longer: list[Segment] = []
    for segment in segments:
        if longer and longer[-1].slot == segment.slot and longer[-1].end == segment.begin:
            longer[-1] = longer[-1]._replace(end=segment.end)
        else:
            longer.append(segment)
    return longer


def uncovered(segments: Iterable[Segment], n_tokens: int) -> list[Segment]:
    """The tokens of [0, n_tokens) that no segment holds, as segments of slot 0."""
    gaps, done = [], 0
    for _, begin, end in sorted(segments, key=lambda segment: segment.begin):
        assert done <= begin <= end <= n_tokens, f"segment {begin}:{end} overlaps token {done} or ends after {n_tokens}"
        if done < begin:
            gaps.append(Segment(0, done, begin))
        done = end
    if done < n_tokens:
        gaps.append(Segment(0, done, n_tokens))
    return gaps


def cut(segments: Sequence[Segment]) -> np.ndarray:
    """Segments of any length, 0 too, as tiles of at most TILE_TOKENS tokens: [N, 3] int32, none of them empty."""
    slot, begin, end = np.array(segments, dtype=np.int64).reshape(-1, 3).T
    counts = -(-(end - begin) // TILE_TOKENS)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(begin, counts) + TILE_TOKENS * number
    ends = np.minimum(begins + TILE_TOKENS, np.repeat(end, counts))
    return np.stack([np.repeat(slot, counts), begins, ends], axis=1).astype(np.int32)
