import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adakron.buckets import make_buckets

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=24)


def buckets_of(lengths, **options):
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return make_buckets(np.array(lengths), starts, torch.device("cpu"), mask_dtype=torch.float32, **options)


@given(LENGTHS, st.booleans())
def test_padding_and_packing_again_changes_nothing(lengths, alone):
    tokens = torch.arange(sum(lengths))
    buckets = buckets_of(lengths, alone=alone)
    assert torch.equal(torch.cat([tokens[bucket.gather] for bucket in buckets.parts])[buckets.scatter], tokens)


@given(LENGTHS)
def test_masks_hide_exactly_the_padding(lengths):
    for bucket in buckets_of(lengths).parts:
        real = torch.arange(bucket.length)[None] < bucket.lengths[:, None]
        if bucket.mask is None:
            assert real.all()
        else:
            assert bucket.mask.is_contiguous()
            assert torch.equal(bucket.mask == 0, real[:, None, None].expand_as(bucket.mask))


@given(LENGTHS)
def test_rows_alone_are_not_padded(lengths):
    parts = buckets_of(lengths, alone=True).parts
    assert sorted(bucket.length for bucket in parts) == sorted(lengths)
    assert all(bucket.mask is None and len(bucket.rows) == 1 for bucket in parts)


@pytest.mark.parametrize(("lengths", "expected"), [([40, 30, 29], [2, 1]), ([12, 4, 3], [2, 1])])
def test_a_row_is_padded_by_a_quarter_or_eight_tokens_at_most(lengths, expected):
    assert [len(bucket.rows) for bucket in buckets_of(lengths).parts] == expected
