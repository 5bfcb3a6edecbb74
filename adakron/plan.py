"""How one batch is laid out: tokens packed without padding, rows grouped by adapter, shared text computed once.

Made once a batch on the host, as numpy arrays. Knows lengths, tokens and slots; nothing of weights, text or devices.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adakron.bank import Placement, SiteShape


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """The rows of one stage whose adapters share a shelf: neighbours in packed order.

    first, last  their packed rows, last excluded
    begin, end   their packed tokens
    slots        [last - first] int64, for each row
    """

    shape: SiteShape
    first: int
    last: int
    begin: int
    end: int
    slots: np.ndarray


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers that are computed on the same packed rows: B rows and T tokens.

    first_layer, last_layer   layers, last_layer excluded; None: to the end
    take       [T] int64: where each token lies among those of the stage before; None in the first stage
    starts, lengths   [B] int64: each row's first packed token and its number of tokens
    groups     rows with an adapter, by shelf; rows without, and rows that several adapters still share, are in none
    """

    first_layer: int
    last_layer: int | None
    take: np.ndarray | None
    starts: np.ndarray
    lengths: np.ndarray
    groups: tuple[SiteGroup, ...]

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1] + self.lengths[-1])


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch.

    ids, type_ids, positions   [T] int64, packed tokens of the first stage
    stages     at least one; the last has a packed row for each row of the batch
    order      packed row of the last stage -> row as the caller gave it
    """

    ids: np.ndarray
    type_ids: np.ndarray
    positions: np.ndarray
    stages: tuple[Stage, ...]
    order: list[int]


@dataclass(frozen=True, slots=True)
class _Packing:
    """One stage's rows in packed order: each is the given rows that it computes, which have one text."""

    units: list[tuple[int, ...]]
    starts: np.ndarray
    lengths: np.ndarray


def make_plan(
    ids: Sequence[np.ndarray],
    type_ids: Sequence[np.ndarray],
    placements: Sequence[Placement | None],
    *,
    pad_id: int | None = None,
    share_layers: bool = True,
) -> Plan:
    """Lay out B rows: ids[n] and type_ids[n], [T] int64, are one row's tokens, placements[n] its adapter or None.

    pad_id        for RoBERTa, which counts positions from pad_id + 1 and skips tokens equal to pad_id; else None
    share_layers  compute a text that several rows have once, up to the layer where each row's adapter starts
    """
    forks = [0 if placement is None else placement.site.first_layer for placement in placements]
    shares = share_layers and any(forks)
    texts = _shared_texts(ids, type_ids, forks) if shares else [(row,) for row in range(len(ids))]
    boundaries = sorted({0, *(forks[row] for rows in texts if len(rows) > 1 for row in rows)})
    stages: list[Stage] = []
    packings: list[_Packing] = []
    for number, layer in enumerate(boundaries):
        packing = _pack(_units(texts, forks, layer), ids, placements)
        stages.append(
            Stage(
                first_layer=layer,
                last_layer=boundaries[number + 1] if number + 1 < len(boundaries) else None,
                take=_take(packings[-1], packing) if packings else None,
                starts=packing.starts,
                lengths=packing.lengths,
                groups=_groups(packing, placements),
            )
        )
        packings.append(packing)
    rows = [unit[0] for unit in packings[0].units]
    packed_ids = np.concatenate([ids[row] for row in rows])
    first = packings[0]
    return Plan(
        ids=packed_ids,
        type_ids=np.concatenate([type_ids[row] for row in rows]),
        positions=_positions(packed_ids, first.lengths, first.starts, pad_id),
        stages=tuple(stages),
        order=[unit[0] for unit in packings[-1].units],
    )


def _shared_texts(
    ids: Sequence[np.ndarray], type_ids: Sequence[np.ndarray], forks: Sequence[int]
) -> list[tuple[int, ...]]:
    """Rows by text; a row whose adapter starts at layer 0 has nothing to share and stands alone."""
    texts: dict[Hashable, list[int]] = {}
    for row, fork in enumerate(forks):
        key: Hashable = row if fork == 0 else (ids[row].tobytes(), type_ids[row].tobytes())
        texts.setdefault(key, []).append(row)
    return [tuple(rows) for rows in texts.values()]


def _units(texts: Iterable[tuple[int, ...]], forks: Sequence[int], layer: int) -> list[tuple[int, ...]]:
    """From `layer` on: each row whose adapter starts here or before by itself, the others of its text together."""
    units: list[tuple[int, ...]] = []
    for rows in texts:
        units.extend((row,) for row in rows if forks[row] <= layer)
        if together := tuple(row for row in rows if forks[row] > layer):
            units.append(together)
    return units


def _pack(
    units: Iterable[tuple[int, ...]], ids: Sequence[np.ndarray], placements: Sequence[Placement | None]
) -> _Packing:
    """Rows without adapter first, then shelf by shelf, slot by slot, shortest first."""
    shapes = sorted({placement.site for placement in placements if placement is not None}, key=repr)
    rank = {shape: number for number, shape in enumerate(shapes, start=1)}

    def key(unit: tuple[int, ...]) -> tuple[int, int, int]:
        placement = _placement(unit, placements)
        return (0, 0, 0) if placement is None else (rank[placement.site], placement.site_slot, len(ids[unit[0]]))

    packed = sorted(units, key=key)
    lengths = np.array([len(ids[unit[0]]) for unit in packed], dtype=np.int64)
    return _Packing(packed, np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64), lengths)


def _placement(unit: tuple[int, ...], placements: Sequence[Placement | None]) -> Placement | None:
    """The adapter of a packed row; None where several rows still share it."""
    return placements[unit[0]] if len(unit) == 1 else None


def _groups(packing: _Packing, placements: Sequence[Placement | None]) -> tuple[SiteGroup, ...]:
    groups: list[SiteGroup] = []
    members: dict[SiteShape, list[int]] = {}
    slots: dict[SiteShape, list[int]] = {}
    for packed, unit in enumerate(packing.units):
        placement = _placement(unit, placements)
        if placement is not None:
            members.setdefault(placement.site, []).append(packed)
            slots.setdefault(placement.site, []).append(placement.site_slot)
    for shape, rows in members.items():
        first, last = rows[0], rows[-1] + 1
        begin, end = int(packing.starts[first]), int(packing.starts[last - 1] + packing.lengths[last - 1])
        groups.append(SiteGroup(shape, first, last, begin, end, np.array(slots[shape], dtype=np.int64)))
    return tuple(groups)


def _take(before: _Packing, after: _Packing) -> np.ndarray:
    """[T] int64: for each token of `after`, where the same token of the same row lies in `before`."""
    start_of = {row: int(start) for unit, start in zip(before.units, before.starts, strict=True) for row in unit}
    origins = np.array([start_of[unit[0]] for unit in after.units], dtype=np.int64)
    inside = np.arange(int(after.lengths.sum()), dtype=np.int64) - np.repeat(after.starts, after.lengths)
    take: np.ndarray = np.repeat(origins, after.lengths) + inside
    return take


def _positions(ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, pad_id: int | None) -> np.ndarray:
    """[T]: from 0 in every row; where pad_id is given, from pad_id + 1, tokens equal to pad_id staying at pad_id."""
    positions: np.ndarray
    if pad_id is None:
        positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts, lengths)
        return positions
    real = (ids != pad_id).astype(np.int64)
    counted = np.cumsum(real)
    before = np.repeat(counted[starts] - real[starts], lengths)
    positions = (counted - before) * real + pad_id
    return positions
