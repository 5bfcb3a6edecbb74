"""Batches as graphs: without a card, where a replay runs the forward again, in Triton's interpreter."""

from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest

from tests.adakron.kernels.batches import run_engine, run_graphed, run_through_changes, run_triton, text
from tests.adakron.kernels.interpreter import interpreter_process
from tests.adakron.test_engine import assert_close

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not made for this platform")

MIXED = [(text(9, 1), 0), (text(1, 2), 1), (text(25, 3), 2), (text(5, 4), None), (text(7, 5), 3)]
FULL = [(text(32, n), n) for n in range(4)]
SHORT = [(text(4, n), n % 5) for n in range(16)]
SINGLE = [(text(3, 6), 4)]
TWO_STAGES = [(text(11, 6), 2), (text(11, 6), 3)]


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


def assert_identical(found, expected):
    for row, wanted in zip(found, expected, strict=True):
        assert np.isfinite(row).all()
        assert (row == wanted).all()


@pytest.mark.parametrize(("family", "dtype"), [("bert", "float32"), ("roberta", "bfloat16")])
def test_replayed_batches_of_any_mix_equal_those_launched_one_by_one_to_the_last_bit(card, family, dtype):
    """One graph after another batch of its own: nothing of a fuller one is left in its tables."""
    batches = [MIXED, FULL, SHORT, SINGLE, MIXED]
    answers = card(run_graphed, family, batches, dtype)
    assert [replayed for _, replayed in answers] == [True] * len(batches)
    for rows, (found, _) in zip(batches, answers, strict=True):
        assert_identical(found, card(run_triton, family, rows, dtype, invariant=True))


def test_what_fits_no_graph_is_launched_one_by_one(card):
    batches = [FULL + SINGLE, [(text(1, n), None) for n in range(33)], TWO_STAGES]
    answers = card(run_graphed, "bert", batches, "float32")
    assert [replayed for _, replayed in answers] == [False] * 3
    for rows, (found, _) in zip(batches, answers, strict=True):
        assert_identical(found, card(run_triton, "bert", rows, "float32", invariant=True))


def test_graphs_survive_a_shelf_that_moves_and_wait_for_one_that_is_new(card):
    states = card(run_through_changes)
    assert [replayed for _, _, replayed in states] == [True, True, False, True]
    for found, expected, _ in states:
        assert_identical(found, expected)


@pytest.mark.slow
def test_an_engine_on_these_kernels_gives_the_logits_of_plain_torch(card):
    found, expected = card(run_engine, "triton"), card(run_engine, "eager")
    for logits, wanted in zip(found, expected, strict=True):
        assert_close(logits, wanted, 1e-5)


@pytest.mark.parametrize(
    ("tokens", "rows", "bucket"),
    [
        (1, 1, 64),
        (64, 16, 64),
        (65, 1, 128),
        (64, 17, 128),
        (20, 40, 192),
        (192, 48, 192),
        (193, 1, None),
        (9, 49, None),
    ],
)
def test_the_bucket_is_the_smallest_with_room_for_tokens_and_rows(tokens, rows, bucket):
    from adakron.graphs import bucket_for

    assert bucket_for((64, 128, 192), tokens, rows) == bucket


def test_from_512_tokens_on_no_bucket_pads_by_more_than_a_quarter():
    from adakron.graphs import BUCKETS

    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert all(later <= 1.25 * bucket for bucket, later in pairwise(BUCKETS) if bucket >= 512)


@pytest.fixture
def counted(monkeypatch):
    """A graphed encoder whose captures are counted and whose kernels do not run."""
    from adakron.kernels import cuda
    from tests.adakron.kernels.batches import graphed, make_world

    monkeypatch.setattr(cuda, "attend", lambda qkv, tiles, heads, out: None)
    monkeypatch.setattr(cuda, "adapt_add_norm", lambda x, residual, norm, tiles, site, out: None)
    monkeypatch.setattr(cuda, "compile_heads", lambda width, dtype, device: None)
    world = make_world("bert")
    encoder, _ = graphed(world, (64, 128))
    captured, capture = [], encoder._capture
    monkeypatch.setattr(encoder, "_capture", lambda bucket, *rest: captured.append(bucket) or capture(bucket, *rest))
    return world, encoder, captured


def test_every_bucket_is_captured_once_the_largest_first(counted):
    from adakron.bank import BankView

    world, encoder, captured = counted
    for _ in range(2):
        encoder.prepare(BankView(world.bank))
    assert captured == [128, 64]


def test_another_adapter_of_a_known_shape_asks_for_no_capture_and_one_of_a_new_shape_does(counted):
    from adakron import AdaKronConfig
    from adakron.bank import BankView
    from tests.tiny import tiny_adapter

    world, encoder, captured = counted
    encoder.prepare(BankView(world.bank))
    for _ in range(20):
        world.bank.add(tiny_adapter(world.backbone))
    encoder.prepare(BankView(world.bank))
    assert captured == [128, 64]
    world.bank.add(tiny_adapter(world.backbone, adakron=AdaKronConfig(28, 4)))
    encoder.prepare(BankView(world.bank))
    assert captured == [128, 64] * 2


def test_a_former_view_does_not_take_graphs_back(counted):
    from adakron import AdaKronConfig
    from adakron.bank import BankView
    from tests.tiny import tiny_adapter

    world, encoder, captured = counted
    former = BankView(world.bank)
    world.bank.add(tiny_adapter(world.backbone, adakron=AdaKronConfig(28, 4)))
    encoder.prepare(BankView(world.bank))
    encoder.prepare(former)
    assert captured == [128, 64]


@pytest.mark.gpu
def test_a_replayed_batch_allocates_nothing_on_the_card():
    import torch

    from adakron.bank import BankView
    from tests.adakron.kernels.batches import graphed, the_world

    world = the_world("bert", "bfloat16", "cuda")
    encoder, _ = graphed(world, (64, 128))
    view = BankView(world.bank)
    encoder.prepare(view)
    plans = [world.plan(rows) for rows in (MIXED, FULL, SHORT, SINGLE)]
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for plan in plans:
        encoder(plan, view)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
