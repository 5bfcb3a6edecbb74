"""One stage of a batch cut into tiles, the tokens that one program or thread of a kernel takes.

Made once a batch on the host, read by every layer. Knows tokens and slots; nothing of rows, weights or kernels.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adakron.bank import SiteShape
from adakron.plan import Stage


class Segment(NamedTuple):
    """The packed tokens [begin, end) of one batch, all of them in one slot of a shelf; slot 0 is the identity."""

    slot: int
    begin: int
    end: int


Group = tuple[SiteShape, Sequence[Segment]]


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch: tiles of one shelf, and of tokens without adapter.

    shape  the shelf that the slots belong to; None where every slot is 0
    tiles  [N, 3] int32: slot, begin, end of at most `tile_tokens` tokens; begin == end is a tile of nothing
    """

    shape: SiteShape | None
    tiles: np.ndarray


class Passes:
    """The launches of every layer of one batch. Those of one layer write each token exactly once.

    groups       for each shelf its segments in rising order; no two segments of a batch overlap
    n_tokens     tokens of the batch; those in no segment have no adapter, nor have a shelf's below its first_layer
    tile_tokens  the most that one tile holds
    apart        tokens without adapter have a launch of their own in every layer, empty where there are none: a kernel
                 that is compiled for each shape sums in another order for each
    plain        tiles of all tokens, without any adapter
    """

    def __init__(self, groups: Sequence[Group], n_tokens: int, *, tile_tokens: int, apart: bool = False) -> None:
        self._first_layers = sorted({0, *(shape.first_layer for shape, _ in groups)})
        self._passes = [
            _launches(
                [(shape, list(segments)) for shape, segments in groups if shape.first_layer <= layer],
                n_tokens,
                tile_tokens,
                apart,
            )
            for layer in self._first_layers
        ]
        self.plain = cut([Segment(0, 0, n_tokens)], tile_tokens)

    def at(self, layer: int) -> tuple[Pass, ...]:
        """The launches of one layer, in any order."""
        return self._passes[bisect_right(self._first_layers, layer) - 1]


def segments_of(stage: Stage) -> list[Group]:
    """The rows of a stage that have an adapter, by shelf: one segment a row."""
    groups: list[Group] = []
    for group in stage.groups:
        begins = stage.starts[group.first : group.last]
        ends = begins + stage.lengths[group.first : group.last]
        rows = zip(group.slots.tolist(), begins.tolist(), ends.tolist(), strict=True)
        groups.append((group.shape, [Segment(*row) for row in rows]))
    return groups


def query_tiles(starts: np.ndarray, lengths: np.ndarray, tile_tokens: int) -> np.ndarray:
    """Rows cut for attention: [N, 3] int32, the first of at most `tile_tokens` queries, begin and end of their row."""
    ends = starts + lengths
    rows, queries, _ = cut(np.stack([np.arange(len(starts)), starts, ends], axis=1), tile_tokens).T
    return np.stack([queries, starts[rows], ends[rows]], axis=1).astype(np.int32)


def _launches(
    groups: list[tuple[SiteShape, list[Segment]]], n_tokens: int, tile_tokens: int, apart: bool
) -> tuple[Pass, ...]:
    """One launch a shelf; the first takes the tokens of no shelf along."""
    work: list[tuple[SiteShape | None, list[Segment]]] = list(groups)
    if apart or not work:
        work.insert(0, (None, []))
    work[0][1].extend(uncovered([segment for _, segments in groups for segment in segments], n_tokens))
    return tuple(Pass(shape, cut(merged(segments), tile_tokens)) for shape, segments in work)


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


def cut(segments: Sequence[Segment] | np.ndarray, tile_tokens: int) -> np.ndarray:
    """Segments of any length, 0 too, as tiles of at most `tile_tokens` tokens: [N, 3] int32, none of them empty."""
    slot, begin, end = np.array(segments, dtype=np.int64).reshape(-1, 3).T
    counts = -(-(end - begin) // tile_tokens)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(begin, counts) + tile_tokens * number
    ends = np.minimum(begins + tile_tokens, np.repeat(end, counts))
    return np.stack([np.repeat(slot, counts), begins, ends], axis=1).astype(np.int32)
