"""The CUDA kernels as an encoder's: in Triton's interpreter everywhere, on the card itself where there is one."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adakron.bank import BankView, HeadShape, Placement, SiteShape
from adakron.plan import make_plan
from tests.adakron.kernels.batches import make_world, run_eager, run_triton, text
from tests.adakron.kernels.interpreter import interpreter_process

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not made for this platform")

MIXES = {
    "many adapters": [(text(9, 1), 0), (text(1, 2), 1), (text(36, 3), 2), (text(5, 4), None), (text(7, 5), 3)],
    "one adapter": [(text(9, 1), 0), (text(20, 2), 0)],
    "base alone": [(text(9, 1), None), (text(34, 2), None)],
    "one text, many adapters": [(text(11, 6), n) for n in (0, 2, 3, None)] + [(text(3, 7), 3), (text(3, 7), 2)],
}


@pytest.fixture(scope="module")
def interpreter():
    with interpreter_process() as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request):
    """Calls a function of `batches` with the device at hand as its last argument."""
    if request.param == "cuda":
        return lambda function, *args, **options: function(*args, "cuda", **options)
    pool = request.getfixturevalue("interpreter")
    return lambda function, *args, **options: pool.submit(partial(function, *args, "cpu", **options)).result()


def assert_rows_equal(found, expected, tolerance):
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, wanted, atol=tolerance)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_forward_equals_plain_torch(card, family, mix):
    rows = MIXES[mix]
    found = card(run_triton, family, rows, "float32")
    assert_rows_equal(found, card(run_eager, family, rows, "float32"), 2e-5)


def test_in_bfloat16_the_forward_stays_as_near_to_float32_as_plain_torch_does(card):
    rows = MIXES["many adapters"]
    exact = card(run_eager, "bert", rows, "float32")

    def error(function):
        found = card(function, "bert", rows, "bfloat16")
        return max(np.abs(row - wanted).max() for row, wanted in zip(found, exact, strict=True))

    assert error(run_triton) <= 1.5 * error(run_eager)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_alone_equals_the_row_among_others_to_the_last_bit(card, dtype):
    rows = MIXES["many adapters"]
    together = card(run_triton, "bert", rows, dtype, invariant=True)
    reordered = card(run_triton, "bert", rows[::-1], dtype, invariant=True)[::-1]
    for row, mixed, other in zip(rows, together, reordered, strict=True):
        (alone,) = card(run_triton, "bert", [row], dtype, invariant=True)
        assert (alone == mixed).all()
        assert (alone == other).all()


SHAPES = (SiteShape(4, 3, 0), SiteShape(4, 5, 0), SiteShape(4, 3, 2))


@st.composite
def batches(draw):
    """Up to 24 rows of any length, adapters of three shelves and the base."""
    lengths = draw(st.lists(st.integers(1, 100), min_size=1, max_size=24))
    numbers = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    return lengths, [None if n == 0 else Placement(SHAPES[n % 3], n, HeadShape("linear", 2), n) for n in numbers]


@pytest.mark.parametrize("invariant", [False, True])
@given(batch=batches())
def test_no_stage_needs_more_than_the_capacity_for_its_tokens_and_rows(invariant, batch):
    from adakron.kernels.cuda import stage_arrays, stage_capacity
    from adakron.kernels.fused_adapter import ShelfTable

    lengths, placements = batch
    ids = [np.zeros(length, np.int64) for length in lengths]
    (stage,) = make_plan(ids, ids, placements, share_layers=False).stages
    shelves = [ShelfTable(s, 20, torch.float32, np.zeros((3 - s.first_layer, 4), np.int64), (0,) * 4) for s in SHAPES]
    needed = stage_arrays(stage, shelves, invariant)
    room = stage_capacity(shelves, sum(lengths), len(lengths), invariant)
    assert len(needed) == len(room)
    for array, place in zip(needed, room, strict=True):
        assert len(array) <= len(place)
        assert (array.dtype, array.shape[1:]) == (place.dtype, place.shape[1:])


def test_compiled_once_no_batch_compiles_anything(compiler):
    compiled = compiler(90)
    world = make_world("bert")
    kernels = world.triton()
    kernels.compile(BankView(world.bank))
    expected = {id(kernel) for kernel in compiled}
    assert len(expected) == 1 + 1 + 3 + 2, "attention, the norm alone, one for each shelf, and two for heads"
    del compiled[:]
    encoder = world.packed(kernels)
    for rows in MIXES.values():
        encoder(world.plan(rows), BankView(world.bank))
    assert compiled
    assert {id(kernel) for kernel in compiled} <= expected


def test_what_is_compiled_is_not_compiled_again(compiler):
    compiled = compiler(90)
    world = make_world("bert")
    kernels = world.triton()
    kernels.compile(BankView(world.bank))
    del compiled[:]
    kernels.compile(BankView(world.bank))
    assert compiled == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("heads", "width"), [(12, 384), (12, 768), (8, 640), (8, 1024)])
def test_attention_compiles_for_the_cards_and_spills_nothing(compiler, heads, width, capability):
    from adakron.kernels.varlen_attention import attend

    compiled = compiler(capability)
    qkv, out = torch.zeros(9, 3 * width, dtype=torch.bfloat16), torch.zeros(9, width, dtype=torch.bfloat16)
    attend(qkv, torch.tensor([[0, 0, 9]], dtype=torch.int32), heads, out)
    (kernel,) = compiled
    assert kernel.metadata.shared <= 48 * 1024
    assert "ld.local" not in kernel.asm["ptx"]
