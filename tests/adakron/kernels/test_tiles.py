import ast

import numpy as np
import pytest

from adakron.bank import SiteShape
from adakron.kernels.tiles import Passes, Segment, cut, merged, query_tiles, uncovered
from tests.test_layers import imported_modules

TILE_TOKENS = 16
FIRST, SECOND, THIRD = SiteShape(4, 3, 0), SiteShape(4, 5, 2), SiteShape(2, 3, 2)


def writes(passes, n_tokens):
    """How often each token of a batch is written, and the slot and shelf that wrote it last."""
    count, slots, shapes = np.zeros(n_tokens, int), np.full(n_tokens, -1), [None] * n_tokens
    for launch in passes:
        for slot, begin, end in launch.tiles.tolist():
            count[begin:end] += 1
            slots[begin:end] = slot
            for token in range(begin, end):
                shapes[token] = launch.shape if slot else None
    return count, slots, shapes


@pytest.mark.parametrize("length", [1, TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 1, 5 * TILE_TOKENS + 3])
def test_a_segment_is_cut_into_neighbouring_tiles_of_at_most_the_tile_size(length):
    tiles = cut([Segment(7, 30, 30 + length)], TILE_TOKENS)
    assert tiles.dtype == np.int32
    assert set(tiles[:, 0]) == {7}
    assert [tiles[0, 1], tiles[-1, 2]] == [30, 30 + length]
    assert (tiles[1:, 1] == tiles[:-1, 2]).all()
    sizes = tiles[:, 2] - tiles[:, 1]
    assert sizes.min() > 0
    assert sizes.max() <= TILE_TOKENS
    assert len(tiles) == -(-length // TILE_TOKENS)


def test_an_empty_segment_has_no_tile():
    assert cut([Segment(3, 5, 5), Segment(1, 5, 6), Segment(2, 6, 6)], TILE_TOKENS).tolist() == [[1, 5, 6]]


def test_no_segments_have_no_tiles():
    assert cut([], TILE_TOKENS).shape == (0, 3)


def test_neighbours_in_one_slot_become_one_segment():
    parts = [Segment(2, 0, 5), Segment(2, 5, 6), Segment(3, 6, 9), Segment(2, 9, 11), Segment(2, 12, 13)]
    assert merged(parts) == [Segment(2, 0, 6), Segment(3, 6, 9), Segment(2, 9, 11), Segment(2, 12, 13)]


def test_tokens_in_no_segment_belong_to_the_identity():
    gaps = uncovered([Segment(4, 7, 9), Segment(1, 2, 4), Segment(5, 9, 9)], 12)
    assert gaps == [Segment(0, 0, 2), Segment(0, 4, 7), Segment(0, 9, 12)]


@pytest.mark.parametrize(
    "segments",
    [[Segment(1, 0, 5), Segment(2, 4, 6)], [Segment(1, 3, 9)], [Segment(1, 4, 3)]],
    ids=["overlap", "past the end", "backwards"],
)
def test_segments_that_cannot_be_are_refused(segments):
    with pytest.raises(AssertionError):
        uncovered(segments, 8)


def test_every_layer_writes_every_token_once():
    groups = [
        (FIRST, [Segment(1, 3, 4), Segment(2, 4, 40)]),
        (SECOND, [Segment(1, 40, 59)]),
        (THIRD, [Segment(6, 60, 77), Segment(0, 77, 80)]),
    ]
    passes = Passes(groups, 90, tile_tokens=TILE_TOKENS)
    for layer in range(4):
        count, slots, shapes = writes(passes.at(layer), 90)
        assert (count == 1).all()
        expected, whose = np.zeros(90, int), [None] * 90
        for shape, segments in groups:
            for slot, begin, end in segments:
                if layer >= shape.first_layer:
                    expected[begin:end] = slot
                    whose[begin:end] = [shape if slot else None] * (end - begin)
        assert (slots == expected).all()
        assert shapes == whose


@pytest.mark.parametrize("covered", [20, 9])
def test_tokens_without_adapter_may_have_a_launch_of_their_own_and_then_always_have_it(covered):
    passes = Passes([(FIRST, [Segment(1, 0, covered)])], 20, tile_tokens=TILE_TOKENS, apart=True)
    plain, shelf = passes.at(0)
    assert (plain.shape, shelf.shape) == (None, FIRST)
    assert writes([plain], 20)[0].tolist() == [0] * covered + [1] * (20 - covered)
    assert writes([shelf], 20)[0].tolist() == [1] * covered + [0] * (20 - covered)
    assert writes(passes.at(0), 20)[0].tolist() == [1] * 20


def test_one_launch_serves_a_layer_of_one_shelf():
    passes = Passes([(FIRST, [Segment(1, 5, 9)])], 20, tile_tokens=TILE_TOKENS)
    assert [launch.shape for launch in passes.at(0)] == [FIRST]


@pytest.mark.parametrize("groups", [[], [(SECOND, [Segment(1, 0, 9)])]], ids=["base rows alone", "below first_layer"])
def test_one_launch_without_shelf_serves_a_layer_without_adapters(groups):
    (launch,) = Passes(groups, 20, tile_tokens=TILE_TOKENS).at(1)
    assert launch.shape is None
    assert writes([launch], 20)[0].tolist() == [1] * 20


def test_passes_leave_the_segments_they_were_given_alone():
    segments = [Segment(1, 5, 9)]
    Passes([(FIRST, segments)], 20, tile_tokens=TILE_TOKENS)
    assert segments == [Segment(1, 5, 9)]


def test_the_tiles_of_all_tokens_have_no_adapter():
    plain = Passes([(FIRST, [Segment(1, 5, 40)])], 50, tile_tokens=TILE_TOKENS).plain
    assert plain.tolist() == [[0, 0, 16], [0, 16, 32], [0, 32, 48], [0, 48, 50]]


def test_tiles_of_queries_stay_within_their_row():
    tiles = query_tiles(np.array([0, 40, 41]), np.array([33, 1, 32]), 32)
    assert tiles.dtype == np.int32
    assert tiles.tolist() == [[0, 0, 33], [32, 0, 33], [40, 40, 41], [41, 41, 73]]


def test_importing_adakron_imports_no_triton(project_dir):
    """It is not made for every platform: what needs it is imported by functions alone, or by others that need it."""
    need_triton = {
        "adakron/kernels/fused_adapter.py",
        "adakron/kernels/grouped_heads.py",
        "adakron/kernels/varlen_attention.py",
        "adakron/kernels/cuda.py",
        "adakron/graphs.py",
    }
    modules = ["triton", *(path.removesuffix(".py").replace("/", ".") for path in need_triton)]
    importers = set()
    for path in (project_dir / "adakron").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [statement for statement in tree.body if not isinstance(statement, ast.FunctionDef | ast.ClassDef)]
        imported = [f"{name}." for _, name in imported_modules(tree)]
        if any(name.startswith(f"{module}.") for name in imported for module in modules):
            importers.add(path.relative_to(project_dir).as_posix())
    assert importers == need_triton
