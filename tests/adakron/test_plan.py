import torch
from hypothesis import given
from hypothesis import strategies as st

from adakron.bank import HeadShape, Placement, SiteShape
from adakron.plan import make_plan

SHAPES = (SiteShape(4, 3, 0), SiteShape(4, 5, 0), SiteShape(4, 3, 1))
CPU = torch.device("cpu")


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=24))
    placements = []
    for _ in lengths:
        number = draw(st.integers(0, 6))
        shape = SHAPES[number % 3]
        placements.append(None if number == 0 else Placement(shape, number, HeadShape("linear", 2), number))
    return lengths, placements


def plan_of(lengths, placements):
    ids = [[100 * row + t for t in range(length)] for row, length in enumerate(lengths)]
    return make_plan(ids, [[0] * n for n in lengths], placements, dtype=torch.float32, device=CPU)


@given(batches())
def test_packing_holds_every_token_of_every_row_once(batch):
    lengths, placements = batch
    plan = plan_of(lengths, placements)
    assert sorted(plan.order) == list(range(len(lengths)))
    for packed, row in enumerate(plan.order):
        begin = int(plan.starts[packed])
        assert plan.ids[begin : begin + lengths[row]].tolist() == [100 * row + t for t in range(lengths[row])]
        assert plan.positions[begin : begin + lengths[row]].tolist() == list(range(lengths[row]))


@given(batches())
def test_padding_and_packing_again_changes_nothing(batch):
    lengths, placements = batch
    plan = plan_of(lengths, placements)
    padded = torch.cat([plan.ids[bucket.gather] for bucket in plan.buckets])
    assert torch.equal(padded[plan.scatter], plan.ids)
    for group in plan.groups:
        if group.only is None:
            part = plan.ids[group.begin : group.end]
            assert torch.equal(torch.cat([part[b.gather] for b in group.buckets])[group.scatter], part)


@given(batches())
def test_masks_hide_exactly_the_padding(batch):
    lengths, placements = batch
    plan = plan_of(lengths, placements)
    for bucket in plan.buckets:
        real = torch.arange(bucket.length)[None] < bucket.lengths[:, None]
        if bucket.mask is None:
            assert real.all()
        else:
            assert bucket.mask.is_contiguous()
            assert torch.equal(bucket.mask == 0, real[:, None, None].expand_as(bucket.mask))


@given(batches())
def test_groups_hold_each_row_with_its_own_slot_and_no_row_without_adapter(batch):
    lengths, placements = batch
    plan = plan_of(lengths, placements)
    seen = {}
    everyone = torch.arange(len(lengths))
    for group in plan.groups:
        for packed, slot in enumerate(group.slots_of(everyone).tolist()):
            if slot:
                assert packed not in seen
                seen[packed] = (group.shape, slot)
    wanted = {n: (p.site, p.site_slot) for n, row in enumerate(plan.order) if (p := placements[row]) is not None}
    assert seen == wanted


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_roberta_positions_skip_tokens_equal_to_padding(ids):
    plan = make_plan([[5, 6], ids], [[0, 0], [0] * len(ids)], [None, None], dtype=torch.float32, device=CPU, pad_id=1)
    mask = torch.tensor(ids).ne(1).int()  # as transformers makes them from input_ids
    expected = (torch.cumsum(mask, 0) * mask + 1).tolist()
    packed = plan.order.index(1)
    begin = int(plan.starts[packed])
    assert plan.positions[begin : begin + len(ids)].tolist() == expected
