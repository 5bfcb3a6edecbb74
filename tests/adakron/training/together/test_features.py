import pytest
import torch

from adakron.training.classifier import encode, pad
from adakron.training.together.encoder import SharedEncoder
from adakron.training.together.features import HiddenStates
from tests.tiny import HIDDEN, tiny_backbone

TEXTS = ["the good word", "down", "no people my over know water than call", "hot hot"]
TOKENS = [5, 3, 10, 4]


def states(budget_bytes: int):
    backbone = tiny_backbone()
    encoder = SharedEncoder(backbone.model)
    return HiddenStates(backbone, encoder, budget_bytes), encode(backbone, TEXTS, 24), backbone, encoder


@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
def test_states_from_the_cache_are_those_computed_anew(budget_bytes: int) -> None:
    cache, rows, backbone, encoder = states(budget_bytes)
    expected = encoder.below(pad(rows, backbone), 2)
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
        found = cache.entering([rows[index] for index in order], 2)
        assert found.shape == (len(order), max(TOKENS[index] for index in order), HIDDEN)
        for place, index in enumerate(order):
            torch.testing.assert_close(
                found[place, : TOKENS[index]], expected[index, : TOKENS[index]], rtol=0, atol=1e-5
            )
            assert not found[place, TOKENS[index] :].any()


def test_a_row_is_computed_once_whoever_asks() -> None:
    cache, rows, *_ = states(1 << 20)
    cache.entering(rows, 2)
    cache.entering([rows[2], rows[0]], 2)
    cache.entering([dict(rows[1]), rows[1]], 2)
    assert cache.computed_rows == 4


def test_equal_rows_of_one_batch_are_computed_once() -> None:
    cache, rows, *_ = states(0)
    found = cache.entering([rows[0], rows[1], rows[0]], 2)
    assert cache.computed_rows == 2
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


def test_another_layer_or_other_segments_are_other_states() -> None:
    cache, rows, *_ = states(1 << 20)
    other = {"input_ids": rows[0]["input_ids"], "token_type_ids": [1] * TOKENS[0]}
    assert not torch.allclose(cache.entering([rows[0]], 1), cache.entering([rows[0]], 2))
    assert not torch.allclose(cache.entering([rows[0]], 2), cache.entering([other], 2))


def test_the_budget_bounds_what_is_kept_and_what_is_kept_stays() -> None:
    room = (TOKENS[0] + TOKENS[1]) * HIDDEN * 4
    cache, rows, *_ = states(room)
    for _ in range(3):
        for row in rows:
            cache.entering([row], 2)
    assert cache.computed_rows == 4 + 2 + 2
    kept = [tensor.untyped_storage().nbytes() for tensor in cache._kept.values()]
    assert sum(kept) == room
