"""Batch-invariant engines: a row's logits are equal to the last bit whatever else is in its batch."""

import numpy as np
import pytest
import torch

from adakron import AdaKronConfig, Backbone, Engine, Row
from adakron.errors import BackboneError
from adakron.linear import FIXED_ROWS, FixedRows
from tests.tiny import tiny_adapter, tiny_backbone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def minilm():
    """Real widths: at those of a tiny model no library has a reason to change its order of summation."""
    return Backbone.load("random:minilm")


def adapter_of(backbone, number):
    shapes = (AdaKronConfig(12, 4), AdaKronConfig(20, 4), AdaKronConfig(12, 4, first_layer=1))
    return tiny_adapter(
        backbone,
        [f"label-{n}" for n in range((2, 3, 20)[number % 3])],
        seed=number,
        scale=0.05,
        adakron=shapes[number % 3],
        pooling="mean" if number % 2 else "cls",
        head="roberta" if number == 4 else "linear",
    )


def engine_of(backbone, kernels="auto", dtype=torch.float32, *, batch_invariant=True):
    engine = Engine(backbone, CPU, dtype, batch_invariant=batch_invariant, kernels=kernels)
    for number in range(6):
        engine.add(f"a{number}", adapter_of(backbone, number))
    return engine


def random_rows(count, vocabulary, seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 32, count)
    return [
        Row(adapter=f"a{generator.integers(6)}", input_ids=generator.integers(5, vocabulary, n).tolist())
        for n in lengths
    ]


@pytest.fixture(scope="module", params=["auto", "eager"])
def engine(request, minilm):
    return engine_of(minilm, request.param)


@pytest.mark.parametrize("size", [2, 3, 7, 16, 61])
def test_logits_do_not_change_by_a_bit_with_the_batch(engine, minilm, size):
    rows = random_rows(61, minilm.tokenizer.get_vocab_size(), seed=size)
    alone = [engine.classify([row])[0].logits for row in rows[:12]]
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        for row, answer in zip(batch, engine.classify(batch), strict=True):
            if row in rows[:12]:
                assert np.array_equal(answer.logits, alone[rows.index(row)]), "the batch shows in the logits"


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_it_holds_in_bfloat16_too(kernels):
    backbone = tiny_backbone()
    engine = engine_of(backbone, kernels, torch.bfloat16)
    rows = random_rows(40, backbone.tokenizer.get_vocab_size(), seed=1)
    together = engine.classify(rows)
    for row, answer in zip(rows, together, strict=True):
        assert np.array_equal(engine.classify([row])[0].logits, answer.logits)


def test_the_answers_are_those_of_an_ordinary_engine(minilm):
    rows = random_rows(20, minilm.tokenizer.get_vocab_size(), seed=2)
    ordinary = engine_of(minilm, batch_invariant=False).classify(rows)
    for one, other in zip(engine_of(minilm).classify(rows), ordinary, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5 * max(1, np.abs(other.logits).max()))


@pytest.mark.parametrize("rows", [1, FIXED_ROWS - 1, FIXED_ROWS, FIXED_ROWS + 1, 3 * FIXED_ROWS])
def test_products_have_one_shape_only(rows):
    shapes = []

    def linear(x):
        shapes.append(tuple(x.shape))
        return 2 * x

    x = torch.randn(rows, 5)
    assert torch.equal(FixedRows(linear)(x), 2 * x)
    assert set(shapes) == {(FIXED_ROWS, 5)}


def test_a_family_that_cannot_is_refused_by_name():
    with pytest.raises(BackboneError, match="deberta-v2"):
        Engine(tiny_backbone("deberta-v2"), CPU, torch.float32, batch_invariant=True)


def test_info_says_so():
    backbone = tiny_backbone()
    assert Engine(backbone, CPU, torch.float32, batch_invariant=True).info().batch_invariant
    assert not Engine(backbone, CPU, torch.float32).info().batch_invariant
