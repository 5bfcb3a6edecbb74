import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from adakron.bank import HeadShape, Placement, SiteShape
from adakron.plan import make_plan

SHAPES = (SiteShape(4, 3, 0), SiteShape(4, 5, 0), SiteShape(4, 3, 1), SiteShape(4, 3, 2))


def placement(number):
    return Placement(SHAPES[number % 4], number, HeadShape("linear", 2), number)


@st.composite
def batches(draw):
    """Rows of few different texts, so that some share theirs, for few different adapters, so that some share those."""
    texts = draw(st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=12), min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(st.sampled_from(texts), st.integers(0, 8)), min_size=1, max_size=24))
    return [ids for ids, _ in rows], [None if number == 0 else placement(number) for _, number in rows]


def plan_of(ids, placements, **options):
    return plan_of_types(ids, [[0] * len(row) for row in ids], placements, **options)


def plan_of_types(ids, type_ids, placements, **options):
    return make_plan([np.array(row) for row in ids], [np.array(row) for row in type_ids], placements, **options)


def origins(plan, number):
    """For each token of a stage, its place among the tokens of the first."""
    places = np.arange(len(plan.ids))
    for stage in plan.stages[1 : number + 1]:
        places = places[stage.take]
    return places


@given(batches(), st.booleans())
def test_every_row_keeps_its_own_tokens_through_all_stages(batch, share):
    ids, placements = batch
    plan = plan_of(ids, placements, share_layers=share)
    assert sorted(plan.order) == list(range(len(ids)))
    last, places = plan.stages[-1], origins(plan, len(plan.stages) - 1)
    for packed, row in enumerate(plan.order):
        begin = int(last.starts[packed])
        mine = places[begin : begin + len(ids[row])]
        assert last.lengths[packed] == len(ids[row])
        assert plan.ids[mine].tolist() == ids[row]
        assert plan.positions[mine].tolist() == list(range(len(ids[row])))


@given(batches(), st.booleans())
def test_rows_are_packed_without_a_gap_and_stages_follow_each_other(batch, share):
    ids, placements = batch
    plan = plan_of(ids, placements, share_layers=share)
    first = plan.stages[0]
    assert first.first_layer == 0
    assert first.take is None
    assert plan.stages[-1].last_layer is None
    for before, after in zip(plan.stages, plan.stages[1:], strict=False):
        assert before.last_layer == after.first_layer > before.first_layer
        assert len(after.take) == after.n_tokens
        assert set(after.take.tolist()) == set(range(before.n_tokens)), "a token was computed for nobody"
    for stage in plan.stages:
        assert stage.starts.tolist() == [0, *np.cumsum(stage.lengths)[:-1].tolist()]
    if not share:
        assert len(plan.stages) == 1


@given(batches())
def test_a_layer_is_computed_for_a_text_as_often_as_adapters_of_the_text_differ_there(batch):
    ids, placements = batch
    plan = plan_of(ids, placements)
    starts = [0 if p is None else p.site.first_layer for p in placements]
    for stage in plan.stages:
        apart = [(tuple(ids[row]), row) for row, start in enumerate(starts) if start <= stage.first_layer]
        together = {(tuple(ids[row]), None) for row, start in enumerate(starts) if start > stage.first_layer}
        assert sorted(stage.lengths.tolist()) == sorted(len(text) for text, _ in [*apart, *together])


@given(batches(), st.booleans())
def test_groups_hold_each_row_with_its_own_slot_and_no_row_without_adapter(batch, share):
    ids, placements = batch
    plan = plan_of(ids, placements, share_layers=share)
    last = plan.stages[-1]
    seen = {}
    for group in last.groups:
        assert (group.begin, group.end) == (
            last.starts[group.first],
            last.starts[group.last - 1] + last.lengths[group.last - 1],
        )
        for packed, slot in zip(range(group.first, group.last), group.slots.tolist(), strict=True):
            assert packed not in seen
            seen[packed] = (group.shape, slot)
    wanted = {n: (p.site, p.site_slot) for n, row in enumerate(plan.order) if (p := placements[row]) is not None}
    assert seen == wanted


@given(batches())
def test_no_adapter_acts_on_a_row_that_others_still_share(batch):
    ids, placements = batch
    for stage in plan_of(ids, placements).stages[:-1]:
        acting = sum(group.last - group.first for group in stage.groups if group.shape.first_layer <= stage.first_layer)
        alone = sum(1 for p in placements if p is not None and p.site.first_layer <= stage.first_layer)
        assert acting == alone


def test_texts_are_the_same_only_if_their_types_are_too():
    late = placement(2)
    plan = plan_of_types([[5, 6], [5, 6]], [[0, 0], [0, 1]], [late, late])
    assert len(plan.stages) == 1
    assert len(plan.ids) == 4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_roberta_positions_skip_tokens_equal_to_padding(ids):
    plan = plan_of([[5, 6], ids], [None, None], pad_id=1)
    mask = torch.tensor(ids).ne(1).int()  # as transformers makes them from input_ids
    expected = (torch.cumsum(mask, 0) * mask + 1).tolist()
    begin = int(plan.stages[0].starts[plan.order.index(1)])
    assert plan.positions[begin : begin + len(ids)].tolist() == expected
