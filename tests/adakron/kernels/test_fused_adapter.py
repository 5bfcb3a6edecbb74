"""The kernel against the oracle, in Triton's interpreter everywhere and on the card itself where there is one."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adakron.adaptation import adapt_padded
from adakron.bank import SiteShape
from adakron.errors import ShapeError
from adakron.kernels.interface import Norm
from adakron.kernels.tiles import Segment
from tests.adakron.kernels.interpreter import interpreter_process
from tests.adakron.kernels.work import EPS, make_work, oracle, run

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not made for this platform")

TILE_TOKENS = 16
# Every token of 0..70: one-token, empty and long segments, one slot in segments apart, gaps, tiles cut at both ends.
SEGMENTS = [
    Segment(2, 3, 4),
    Segment(5, 4, 41),
    Segment(2, 50, 60),
    Segment(4, 60, 60),
    Segment(1, 60, 61),
    Segment(3, 61, 71),
]
N_TOKENS = 71
# In 16 bits: half a unit in the last place of the answer, and before it what rounding z adds, times the norm's weight.
TOLERANCE = {"float32": (5e-6, 5e-6), "float16": (5e-3, 2**-11), "bfloat16": (4e-2, 2**-8)}


@pytest.fixture(scope="module")
def interpreter():
    with interpreter_process() as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request):
    """Runs a work: what the kernel wrote, [T, D]."""
    if request.param == "cuda":
        return partial(run, device="cuda")
    pool = request.getfixturevalue("interpreter")
    return lambda work: pool.submit(run, work, "cpu").result()


def assert_equal(found: np.ndarray, expected: np.ndarray, dtype: str = "float32") -> None:
    atol, rtol = TOLERANCE[dtype]
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("width", "factor", "quotient"),
    [(20, 4, 3), (100, 5, 7), (384, 4, 12), (768, 4, 2), (1024, 4, 32)],
    ids=["tiny", "no power of two", "minilm r48", "bert-base r8", "roberta-large r128"],
)
def test_every_token_equals_the_equation(card, width, factor, quotient, dtype):
    work = make_work(width, N_TOKENS, [(SiteShape(factor, quotient, 0), SEGMENTS)], dtype=dtype)
    assert_equal(card(work), oracle(work), dtype)


def test_float16_equals_the_equation(card):
    work = make_work(100, N_TOKENS, [(SiteShape(5, 7, 0), SEGMENTS)], dtype="float16")
    assert_equal(card(work), oracle(work), "float16")


@pytest.mark.parametrize("length", [1, TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 1, 3 * TILE_TOKENS])
def test_a_segment_of_any_length_equals_the_equation(card, length):
    work = make_work(20, length, [(SiteShape(4, 3, 0), [Segment(1, 0, length)])])
    assert_equal(card(work), oracle(work))


def test_two_hundred_slots_in_one_launch_equal_the_equation(card):
    ends = np.cumsum(np.random.default_rng(3).integers(1, 5, 200)).tolist()
    segments = [Segment(slot, begin, end) for slot, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), 1)]
    work = make_work(20, ends[-1], [(SiteShape(4, 3, 0), segments)])
    assert_equal(card(work), oracle(work))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_shelves_of_several_shapes_and_first_layers_equal_the_equation(card, layer):
    shelves = [
        (SiteShape(4, 3, 0), [Segment(3, 2, 9), Segment(1, 9, 30)]),
        (SiteShape(5, 4, 1), [Segment(2, 30, 47)]),
        (SiteShape(2, 6, 2), [Segment(2, 48, 49), Segment(4, 49, 53)]),
    ]
    work = make_work(20, 55, shelves, layer=layer)
    assert_equal(card(work), oracle(work))


@pytest.mark.parametrize("width", [20, 384])
def test_tokens_without_adapter_get_the_residual_and_the_norm(card, width):
    work = make_work(width, 37, [])
    x, residual, weight, bias = map(torch.from_numpy, (work.x, work.residual, work.weight, work.bias))
    assert_equal(card(work), F.layer_norm(x + residual, (width,), weight, bias, EPS).numpy())


def test_slot_zero_is_never_read(card):
    work = make_work(20, N_TOKENS, [(SiteShape(4, 3, 0), [*SEGMENTS[:2], Segment(0, 44, 48)])])
    for tensor in work.shelves[0][1].values():
        tensor[0] = np.nan
    assert_equal(card(work), oracle(work))


def test_the_plain_torch_adapter_agrees(card):
    work = make_work(20, N_TOKENS, [(shape := SiteShape(4, 3, 0), SEGMENTS)])
    site = {name: torch.from_numpy(values)[:, work.layer] for name, values in work.shelves[0][1].items()}
    slots = torch.zeros(N_TOKENS, dtype=torch.int64)
    for slot, begin, end in SEGMENTS:
        slots[begin:end] = slot
    x, residual, weight, bias = map(torch.from_numpy, (work.x, work.residual, work.weight, work.bias))
    y = torch.where(slots[:, None] > 0, adapt_padded(x[:, None], site, shape, slots)[:, 0], x)
    expected = F.layer_norm(y + residual, (20,), weight, bias, EPS)
    assert_equal(card(work), expected.numpy())


def test_a_bad_adapter_spoils_its_own_tokens_alone(card):
    work = make_work(20, N_TOKENS, [(SiteShape(4, 3, 0), SEGMENTS)])
    work.shelves[0][1]["up"][2] = np.nan
    found = card(work)
    sick = np.isnan(found).any(axis=1)
    assert np.flatnonzero(sick).tolist() == [3, *range(50, 60)]
    assert_equal(found[~sick], oracle(work)[~sick])


def test_a_bad_token_spoils_itself_alone(card):
    work = make_work(20, N_TOKENS, [(SiteShape(4, 3, 0), SEGMENTS)])
    work.x[7, 11] = np.nan
    assert np.flatnonzero(np.isnan(card(work)).any(axis=1)).tolist() == [7]


def test_columns_beyond_the_bottleneck_stay_silent(card):
    """R = 12 is padded to 16 with what is at hand: here u[0]**2, beyond float32, while no real product is."""
    work = make_work(20, 5, [(SiteShape(4, 3, 0), [Segment(1, 0, 5)])])
    tensors = work.shelves[0][1]
    tensors["down"][...] = 0
    tensors["down_bias"][..., 0] = 1e25
    tensors["down_bias"][..., 4:] *= 1e-25
    assert_equal(card(work), oracle(work))


def test_a_row_of_large_mean_keeps_its_digits(card):
    """E[y**2] - E[y]**2 would lose them."""
    work = make_work(100, 9, [])
    work.x[...] += 300
    assert np.abs(card(work) - oracle(work)).max() < 1e-3


def far_slots() -> tuple[np.ndarray, np.ndarray]:
    """Slot 2 of a shelf begins at element 2**31 of its tensor: a file of 4 GB, of which only what is touched exists."""
    from adakron.kernels.fused_adapter import Site, adapt_add_norm, shelf_table

    work = make_work(20, 9, [(shape := SiteShape(4, 3, 2), [Segment(2, 0, 9)])], dtype="float16", layer=2)
    x, residual, weight, bias = (
        torch.from_numpy(values).half() for values in (work.x, work.residual, work.weight, work.bias)
    )
    tensors = {name: torch.from_numpy(values).half() for name, values in work.shelves[0][1].items()}
    out = torch.empty_like(x)
    with TemporaryFile() as file:
        storage = np.memmap(file, dtype=np.float16, shape=2 * 2**30 + 7 * 20)
        far = torch.from_numpy(storage).as_strided((3, 1, 7, 20), (2**30, 7 * 20, 20, 1))
        far[2] = tensors["down"][2]
        table = shelf_table(shape, tensors | {"down": far})
        site = Site(table, torch.from_numpy(table.addresses)[0])
        tiles = torch.tensor([[2, 0, 9]], dtype=torch.int32)
        adapt_add_norm(x, residual, Norm(weight, bias, EPS), tiles, site, out)
    return out.float().numpy(), oracle(work)


def test_slots_beyond_two_to_the_31_elements_are_found(interpreter):
    found, expected = interpreter.submit(far_slots).result()
    assert_equal(found, expected, "float16")


@pytest.fixture
def shelf():
    """Arguments of shelf_table by name, all of them right."""
    work = make_work(20, 9, [(shape := SiteShape(4, 3, 0), [Segment(2, 0, 9)])])
    tensors = {name: torch.from_numpy(values) for name, values in work.shelves[0][1].items()}
    return {"shape": shape, "tensors": tensors}


@pytest.fixture
def sound(shelf):
    """Arguments of adapt_add_norm by name, all of them right."""
    from adakron.kernels.fused_adapter import Site, shelf_table

    work = make_work(20, 9, [])
    x, residual, weight, bias = map(torch.from_numpy, (work.x, work.residual, work.weight, work.bias))
    table = shelf_table(**shelf)
    return {
        "x": x,
        "residual": residual,
        "norm": Norm(weight, bias, EPS),
        "tiles": torch.tensor([[2, 0, 9]], dtype=torch.int32),
        "site": Site(table, torch.from_numpy(table.addresses)[1]),
        "out": torch.empty_like(x),
    }


@pytest.fixture
def launched(monkeypatch):
    """Instead of running, the kernel records the grid and arguments of each launch."""
    from adakron.kernels import fused_adapter

    launches = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launches.append((grid, args, kwargs))

    monkeypatch.setattr(fused_adapter, "_adapt_add_norm", Recorder())
    return launches


def launch(arguments):
    from adakron.kernels.fused_adapter import adapt_add_norm

    adapt_add_norm(**arguments)


def test_sound_arguments_are_launched(sound, launched):
    launch(sound)
    assert [grid for grid, _, _ in launched] == [(1,)]


def test_no_tiles_are_not_launched(sound, launched):
    launch(sound | {"tiles": torch.empty(0, 3, dtype=torch.int32), "site": None})
    assert launched == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda t: t[0]),
        ("x", lambda t: t.double()),
        ("x", lambda t: t.T.contiguous().T),
        ("residual", lambda t: t[:-1]),
        ("residual", lambda t: t.bfloat16()),
        ("out", lambda t: t[:, :-1]),
        ("out", lambda t: t.T.contiguous().T),
        ("norm", lambda norm: replace(norm, weight=norm.weight[:-1])),
        ("norm", lambda norm: replace(norm, bias=norm.bias.half())),
        ("tiles", lambda t: t.long()),
        ("tiles", lambda t: t[:, :2]),
        ("site", lambda site: replace(site, addresses=site.addresses.int())),
        ("site", lambda site: replace(site, shelf=replace(site.shelf, width=24))),
        ("site", lambda site: replace(site, shelf=replace(site.shelf, dtype=torch.float16))),
    ],
)
def test_tensors_of_another_shape_dtype_or_layout_are_refused(sound, launched, name, change):
    with pytest.raises(ShapeError):
        launch(sound | {name: change(sound[name])})
    assert launched == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("down", lambda t: t[..., :-1, :]),
        ("down", lambda t: t.mT.contiguous().mT),
        ("down_bias", lambda t: t[:-1]),
        ("up", lambda t: t[:, :-1]),
        ("up", lambda t: t.mT.contiguous()),
        ("up", lambda t: t.half()),
        ("up_bias", lambda t: t[..., :-1]),
    ],
)
def test_a_shelf_of_another_shape_dtype_or_layout_is_refused(shelf, name, change):
    from adakron.kernels.fused_adapter import shelf_table

    with pytest.raises(ShapeError, match="down" if name == "up_bias" else name):  # the width is up_bias's
        shelf_table(**shelf | {"tensors": shelf["tensors"] | {name: change(shelf["tensors"][name])}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "quotient", "capability"),
    [(1024, 32, 80), (768, 12, 90), (384, 12, 86)],
    ids=["roberta-large r128 A100", "bert-base r48 H100", "minilm r48 A10"],
)
def test_it_compiles_into_what_a_multiprocessor_holds_twice(compiler, width, quotient, capability):
    compiled = compiler(capability)
    run(make_work(width, 9, [(SiteShape(4, quotient, 0), [Segment(2, 0, 9)])], dtype="bfloat16"), "cpu")
    (kernel,) = compiled
    assert kernel.metadata.shared <= 48 * 1024
    assert ".maxnreg 128" in kernel.asm["ptx"]
    assert 2 * 128 * 32 * kernel.metadata.num_warps <= 65_536


def test_neither_layers_nor_batches_ask_for_another_compilation(compiler):
    """Neither another address of a layer's tensors nor of the tiles, which share one buffer."""
    compiled = compiler(90)
    first, second = SiteShape(4, 3, 0), SiteShape(4, 5, 2)
    for layer in range(3):
        for slot, begin, n_tokens in ((1, 0, 9), (2, 5, 40), (17, 16, 100)):
            shelves = [(first, [Segment(slot, begin, n_tokens - 1)]), (second, [Segment(1, n_tokens - 1, n_tokens)])]
            run(make_work(20, n_tokens, shelves, layer=layer), "cpu")
    assert len(compiled) == 3 * (1 + 1 + 2)
    assert len({id(kernel) for kernel in compiled}) == 2, "one for each shape of adapter"
