"""Splits: shares as they were asked for, sticky by key, and nobody leaves a growing canary."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.split import Split

SPLITS = (
    st.lists(st.integers(0, 100), min_size=1, max_size=5)
    .map(lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 100], strict=True)])
    .map(lambda weights: Split({n + 1: weight for n, weight in enumerate(weights) if weight}, 9))
)


@given(SPLITS, st.text(max_size=20), st.text(max_size=20))
def test_key_always_goes_to_the_same_version_and_one_that_takes_part(split: Split, name: str, key: str) -> None:
    assert split.choose(name, key) == split.choose(name, key)
    assert split.choose(name, key) in split.weights


@given(SPLITS)
def test_json_gives_the_split_back(split: Split) -> None:
    assert Split.from_json(split.to_json()) == split


@given(st.integers(1, 98), st.integers(1, 99), st.text(max_size=20))
def test_growing_canary_keeps_all_it_has(small: int, more: int, key: str) -> None:
    large = min(99, small + more)
    if Split({3: 100 - small, 4: small}).choose("x", key) == 4:
        assert Split({3: 100 - large, 4: large}).choose("x", key) == 4


@pytest.mark.parametrize("keyed", [True, False])
def test_shares_are_those_asked_for(keyed: bool) -> None:
    random.seed(7)
    split = Split({1: 60, 2: 30, 3: 10})
    chosen = Counter(split.choose("x", str(n) if keyed else None) for n in range(10_000))
    assert all(abs(chosen[version] - 100 * weight) < 200 for version, weight in split.weights.items())


def test_names_share_out_their_keys_independently() -> None:
    split = Split({1: 50, 2: 50})
    same = sum(split.choose("x", str(n)) == split.choose("y", str(n)) for n in range(2000))
    assert 800 < same < 1200


def test_versions_are_those_of_weights_and_shadow() -> None:
    assert Split({1: 50, 2: 50}, 3).versions() == {1, 2, 3}
    assert Split({1: 100}).versions() == {1}
