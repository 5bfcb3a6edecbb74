"""Attention on packed rows against the formula, in Triton's interpreter everywhere and on a card if there is one."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from adakron.errors import ShapeError
from tests.adakron.kernels.interpreter import interpreter_process

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not made for this platform")

TILE = 32
LENGTHS = [1, 5, TILE - 1, TILE, TILE + 1, 2, 3 * TILE + 7, 1]
TOLERANCE = {"float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def packed(lengths, width, dtype="float32", *, seed=0, scale=1.0) -> np.ndarray:
    """[T, 3 D] float32, exact in dtype."""
    values = scale * np.random.default_rng(seed).standard_normal((sum(lengths), 3 * width))
    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()


def run(qkv: np.ndarray, lengths, heads: int, dtype: str, device: str, *, starts=None) -> np.ndarray:
    """[T, D] float32; tokens of no row are NaN."""
    from adakron.kernels.tiles import query_tiles
    from adakron.kernels.varlen_attention import TILE_TOKENS, attend

    assert TILE_TOKENS == TILE
    lengths = np.asarray(lengths, np.int64)
    starts = np.cumsum(lengths) - lengths if starts is None else np.asarray(starts, np.int64)
    tensor = torch.from_numpy(qkv).to(device, getattr(torch, dtype))
    out = tensor.new_full((len(qkv), qkv.shape[1] // 3), float("nan"))
    attend(tensor, torch.from_numpy(query_tiles(starts, lengths, TILE_TOKENS)).to(device), heads, out)
    return out.float().cpu().numpy()


def formula(qkv: np.ndarray, lengths, heads: int) -> np.ndarray:
    """Row by row, head by head, in float64."""
    width, rows, begin = qkv.shape[1] // 3, [], 0
    for length in lengths:
        q, k, v = qkv[begin : begin + length].astype(np.float64).reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(width / heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = weights / weights.sum(-1, keepdims=True) @ v
        rows.append(context.transpose(1, 0, 2).reshape(length, width))
        begin += length
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def interpreter():
    with interpreter_process() as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request):
    """attend on packed rows: [T, D]."""
    if request.param == "cuda":
        return partial(run, device="cuda")
    pool = request.getfixturevalue("interpreter")
    return lambda *work, **options: pool.submit(run, *work, "cpu", **options).result()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("width", "heads"),
    [(20, 4), (64, 2), (144, 3), (160, 2), (256, 2)],
    ids=["5 a head", "32 a head", "48 a head", "80 a head", "128 a head"],
)
def test_every_row_attends_to_itself_alone(card, width, heads, dtype):
    qkv = packed(LENGTHS, width, dtype)
    np.testing.assert_allclose(card(qkv, LENGTHS, heads, dtype), formula(qkv, LENGTHS, heads), atol=TOLERANCE[dtype])


def test_the_longest_row_of_an_encoder_equals_the_formula(card):
    qkv = packed([512], 64)
    np.testing.assert_allclose(card(qkv, [512], 1, "float32"), formula(qkv, [512], 1), atol=5e-6)


def test_scores_of_any_size_give_finite_weights(card):
    """exp of the scores themselves would overflow; keys that grow along the row move the maximum in every block."""
    qkv = packed([3 * TILE], 16, scale=30)
    qkv[:, 16:32] *= np.linspace(1, 4, 3 * TILE, dtype=np.float32)[:, None]
    found = card(qkv, [3 * TILE], 1, "float32")
    np.testing.assert_allclose(found, formula(qkv, [3 * TILE], 1), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_alone_equals_the_row_among_others_to_the_last_bit(card, dtype):
    qkv = packed(LENGTHS, 40, dtype)
    together, begin = card(qkv, LENGTHS, 2, dtype), 0
    for length in LENGTHS:
        row = slice(begin, begin + length)
        assert (card(qkv[row], [length], 2, dtype) == together[row]).all()
        begin += length


def test_tokens_of_no_row_are_neither_read_nor_written(card):
    qkv = packed([40, 3, 9], 20)
    qkv[40:43] = np.nan
    found = card(qkv, [40, 9], 4, "float32", starts=[0, 43])
    assert np.isnan(found[40:43]).all()
    rest = [*range(40), *range(43, 52)]
    np.testing.assert_allclose(found[rest], formula(qkv[rest], [40, 9], 4), atol=5e-6)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_a_bad_token_spoils_its_own_row_at_most(card, part):
    qkv = packed([5, TILE + 3, 4], 20)
    qkv[9, 20 * part + 7] = np.nan
    sick = np.flatnonzero(np.isnan(card(qkv, [5, TILE + 3, 4], 4, "float32")).any(axis=1)).tolist()
    assert sick == ([9] if part == 0 else list(range(5, TILE + 8)))


@pytest.fixture
def sound():
    """Arguments of attend by name, all of them right."""
    tiles = torch.tensor([[0, 0, 9]], dtype=torch.int32)
    return {"qkv": torch.zeros(9, 60), "tiles": tiles, "heads": 4, "out": torch.zeros(9, 20)}


@pytest.fixture
def launched(monkeypatch):
    """Instead of running, the kernel records the grid of each launch."""
    from adakron.kernels import varlen_attention

    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: grids.append(grid)

    monkeypatch.setattr(varlen_attention, "_attend", Recorder())
    return grids


def test_sound_arguments_are_launched_once_for_all_heads(sound, launched):
    from adakron.kernels.varlen_attention import attend

    attend(**sound)
    assert launched == [(4,)]


def test_no_tiles_are_not_launched(sound, launched):
    from adakron.kernels.varlen_attention import attend

    attend(**sound | {"tiles": torch.empty(0, 3, dtype=torch.int32)})
    assert launched == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv", lambda t: t[:, :-3]),
        ("qkv", lambda t: t[:-1]),
        ("qkv", lambda t: t.half()),
        ("qkv", lambda t: t.T.contiguous().T),
        ("out", lambda t: t[0]),
        ("out", lambda t: t.T.contiguous().T),
        ("tiles", lambda t: t.long()),
        ("tiles", lambda t: t[:, :2]),
        ("heads", lambda heads: 3),
    ],
)
def test_arguments_of_another_shape_dtype_or_layout_are_refused(sound, launched, name, change):
    from adakron.kernels.varlen_attention import attend

    with pytest.raises(ShapeError):
        attend(**sound | {name: change(sound[name])})
    assert launched == []
