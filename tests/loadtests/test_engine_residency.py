"""The benchmark of tiers: its simulator against trying everything, and one small run."""

import json
from functools import cache
from pathlib import Path
from random import Random

import pytest

from loadtests import engine_residency
from loadtests.engine_residency import belady


def most_hits(asked: str, slots: int) -> int:
    """The most hits that any choice of victims gives, by trying all of them."""

    @cache
    def best(now: int, held: frozenset[str]) -> int:
        if now == len(asked):
            return 0
        key = asked[now]
        if key in held:
            return 1 + best(now + 1, held)
        if len(held) < slots:
            return best(now + 1, held | {key})
        return max(best(now + 1, held - {victim} | {key}) for victim in held)

    return best(0, frozenset())


@pytest.mark.parametrize("seed", range(8))
def test_belady_is_the_best_there_is(seed: int) -> None:
    draw = Random(seed)
    asked = "".join(draw.choices("abcdef", weights=[6, 5, 4, 3, 2, 1], k=18))
    for slots in (1, 2, 3, 4):
        assert belady(asked, slots) == pytest.approx(most_hits(asked, slots) / len(asked))


def test_rows_before_the_count_begins_fill_slots_and_count_for_nothing() -> None:
    assert belady("ababab", 2, 2) == 1.0
    assert belady("ababab", 2) == pytest.approx(4 / 6)


def test_a_small_run_says_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n", "200", "--adapters", "16", "--cold", "4", "--backbone", "random:tiny", "--dtype", "float32"]
    assert engine_residency.main([*options, "--device", "cpu", "--results", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "engine-residency.json").read_text())["figures"]
    assert engine_residency.TARGETS.keys() <= figures.keys()
    assert 0 < figures["hit ratio"] <= 1
    said = capsys.readouterr().out
    assert all(name in said for name in figures)
