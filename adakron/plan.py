"""How one batch is laid out: tokens packed without padding, rows grouped by adapter, padded only where needed.

Made once a batch on the host, used by every layer. Knows lengths and slots; nothing of weights or text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adakron.bank import Placement, SiteShape


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length, padded to the longest of them.

    rows     [b] int64, packed row numbers
    gather   [b * length] int64, the packed token at each padded position; padding repeats the row's first token,
             so it is always finite
    lengths  [b] int64
    mask     [b, 1, length, length] of the encoder's dtype, 0 or -inf, written out in full (a broadcast mask sends
             attention down a slow path); None where no row is padded
    """

    rows: Tensor
    gather: Tensor
    lengths: Tensor
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """The rows of one batch whose adapters share a shelf: they are neighbours in packed order, from row `first` on.

    begin, end   their packed tokens
    slots    [rows] int64, for each row of the group
    buckets  their rows counted from the group's first, their gather from token `begin`
    scatter  [end - begin] int64: the padded position of each token, over all buckets of the group
    only     the slot, where all rows have the same
    """

    shape: SiteShape
    first: int
    begin: int
    end: int
    slots: Tensor
    buckets: tuple[Bucket, ...]
    scatter: Tensor
    only: int | None

    def slots_of(self, rows: Tensor) -> Tensor:
        """The slot of each packed row number, slot 0 (the identity) for rows outside this group."""
        number = rows - self.first
        inside = (number >= 0) & (number < len(self.slots))
        return torch.where(inside, self.slots[number.clamp(0, len(self.slots) - 1)], 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch of B rows and T tokens in packed order.

    order      packed row -> row as the caller gave it
    ids, type_ids, positions   [T] int64
    starts, lengths            [B] int64: each row's first packed token and its number of tokens
    buckets    cover all rows, for attention
    scatter    [T] int64: the padded position of each packed token, over all buckets
    groups     rows with an adapter, by shelf; rows without are in none
    """

    order: list[int]
    ids: Tensor
    type_ids: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    buckets: tuple[Bucket, ...]
    scatter: Tensor
    groups: tuple[SiteGroup, ...]


def make_plan(
    ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]],
    placements: Sequence[Placement | None],
    *,
    dtype: torch.dtype,
    device: torch.device,
    pad_id: int | None = None,
) -> Plan:
    """Lay out B rows: ids[n] and type_ids[n] are one row's tokens, placements[n] its adapter or None for the base.

    pad_id   for RoBERTa, which counts positions from pad_id + 1 and skips tokens equal to pad_id; else None
    """
    shapes = {p.site for p in placements if p is not None}
    rank = {shape: number for number, shape in enumerate(sorted(shapes, key=repr), start=1)}

    def key(row: int) -> tuple[int, int, int]:
        placement = placements[row]
        return (0, 0, 0) if placement is None else (rank[placement.site], placement.site_slot, len(ids[row]))

    order = sorted(range(len(ids)), key=key)
    lengths = np.array([len(ids[row]) for row in order], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    packed_ids = np.concatenate([np.asarray(ids[row], dtype=np.int64) for row in order])
    packed_types = np.concatenate([np.asarray(type_ids[row], dtype=np.int64) for row in order])

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    buckets, scatter = _buckets(lengths, starts, dtype, device, masked=True)
    groups: list[SiteGroup] = []
    for shape in sorted(shapes, key=repr):
        members = [n for n, row in enumerate(order) if (p := placements[row]) is not None and p.site == shape]
        first, last = members[0], members[-1]
        begin, end = int(starts[first]), int(starts[last] + lengths[last])
        slots = np.array([_slot(placements[order[n]]) for n in members], dtype=np.int64)
        only = int(slots[0]) if (slots == slots[0]).all() else None
        if only is None:
            part, part_scatter = _buckets(
                lengths[first : last + 1], starts[first : last + 1] - begin, dtype, device, masked=False
            )
        else:
            part, part_scatter = (), torch.empty(0, dtype=torch.int64)
        groups.append(SiteGroup(shape, first, begin, end, tensor(slots), part, part_scatter, only))
    return Plan(
        order=order,
        ids=tensor(packed_ids),
        type_ids=tensor(packed_types),
        positions=tensor(_positions(packed_ids, lengths, starts, pad_id)),
        starts=tensor(starts),
        lengths=tensor(lengths),
        buckets=buckets,
        scatter=scatter,
        groups=tuple(groups),
    )


def _slot(placement: Placement | None) -> int:
    return 0 if placement is None else placement.site_slot


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


def _buckets(
    lengths: np.ndarray, starts: np.ndarray, dtype: torch.dtype, device: torch.device, *, masked: bool
) -> tuple[tuple[Bucket, ...], Tensor]:
    """Rows by falling length, cut where the next would be padded by more than a quarter (at least 8 tokens)."""
    by_length = np.argsort(-lengths, kind="stable")
    cuts: list[list[int]] = []
    for row in by_length.tolist():
        longest = lengths[cuts[-1][0]] if cuts else 0
        if cuts and longest - lengths[row] <= max(8, longest // 4):
            cuts[-1].append(row)
        else:
            cuts.append([row])
    scatter = np.empty(int(lengths.sum()), dtype=np.int64)
    buckets, offset = [], 0
    for rows in cuts:
        length = int(lengths[rows[0]])
        column = np.arange(length, dtype=np.int64)
        valid = column[None] < lengths[rows][:, None]
        gather = starts[rows][:, None] + np.where(valid, column[None], 0)
        scatter[gather[valid]] = offset + np.flatnonzero(valid)
        offset += gather.size
        mask = None
        if masked and not valid.all():
            bias = torch.zeros(len(rows), 1, 1, length, dtype=dtype).masked_fill(
                ~torch.from_numpy(valid)[:, None, None], float("-inf")
            )
            mask = bias.to(device).expand(-1, 1, length, -1).contiguous()
        buckets.append(
            Bucket(
                rows=torch.tensor(rows, device=device),
                gather=torch.from_numpy(gather.reshape(-1)).to(device),
                lengths=torch.from_numpy(lengths[rows]).to(device),
                length=length,
                mask=mask,
            )
        )
    return tuple(buckets), torch.from_numpy(scatter).to(device)
