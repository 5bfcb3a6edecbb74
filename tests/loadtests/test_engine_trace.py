import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from loadtests.engine_trace import (
    LENGTH_QUANTILES,
    Batch,
    Trace,
    generated_length,
    generated_trace,
    real_trace,
)
from tests.tiny import tiny_tokenizer


@pytest.fixture
def trace() -> Trace:
    return generated_trace(range(10, 50), count=500)


def write_source(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    (folder / name).mkdir()
    with gzip.open(folder / name / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_batch_counts_tokens_and_adapters() -> None:
    batch = Batch(((1, 2, 3), (4,), (5, 6)), (7, 2, 7))
    assert (batch.n_tokens, batch.distinct) == (6, 2)


def test_a_batch_wants_an_adapter_a_row() -> None:
    with pytest.raises(ValueError, match="1 for 2 rows"):
        Batch(((1,), (2,)), (0,))


def test_generated_lengths_meet_the_measured_quantiles() -> None:
    last = len(LENGTH_QUANTILES) - 1
    assert [generated_length(number / last) for number in range(last + 1)] == list(LENGTH_QUANTILES)


def test_generated_lengths_lie_between_quantiles() -> None:
    assert LENGTH_QUANTILES[-2] < generated_length(0.99) < LENGTH_QUANTILES[-1]


def test_generated_rows_have_the_mean_length_of_real_ones(trace: Trace) -> None:
    assert 25 < sum(map(len, trace.pool)) / len(trace.pool) < 32


def test_generated_tokens_are_of_the_vocabulary(trace: Trace) -> None:
    assert {token for row in trace.pool for token in row} == set(range(10, 50))


def test_generated_rows_are_cut() -> None:
    assert max(map(len, generated_trace(range(9), max_tokens=20, count=300).pool)) == 20


def test_the_same_seed_draws_the_same() -> None:
    first, second = generated_trace(range(99), count=50), generated_trace(range(99), count=50)
    assert first.rows(20) == second.rows(20)
    assert first.zipf(20, 7) == second.zipf(20, 7)


def test_rows_of_have_exactly_that_many_tokens(trace: Trace) -> None:
    for n_tokens in (1, 64, 1000):
        rows = trace.rows_of(n_tokens)
        assert sum(map(len, rows)) == n_tokens
        assert all(rows)


def test_spread_takes_exactly_that_many_adapters_and_shares_the_rows(trace: Trace) -> None:
    counts = Counter(trace.spread(64, 10, 1000))
    assert len(counts) == 10
    assert set(counts.values()) == {6, 7}


@pytest.mark.parametrize(("count", "distinct", "adapters"), [(4, 5, 9), (9, 5, 4), (4, 0, 4)])
def test_an_impossible_spread_is_refused(trace: Trace, count: int, distinct: int, adapters: int) -> None:
    with pytest.raises(ValueError, match="cannot spread"):
        trace.spread(count, distinct, adapters)


def test_zipf_prefers_a_few_and_uniform_does_not(trace: Trace) -> None:
    zipf, uniform = (Counter(draw(5000, 100)) for draw in (trace.zipf, trace.uniform))
    assert zipf.most_common(1)[0][1] > 5000 / 8  # 1 / (1 + 1/2 + .. + 1/100) = 0.19
    assert uniform.most_common(1)[0][1] < 5000 / 40


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Trace([], "nothing")


def test_real_texts_of_every_source_have_equal_parts(tmp_path: Path) -> None:
    write_source(tmp_path, "clinc150", [{"text": "the"}])
    write_source(tmp_path, "tweeteval_hate", [{"text": "the a"}, {"text": " "}])
    write_source(tmp_path, "tweeteval_emoji", [{"text": "a of"}])
    write_source(tmp_path, "sst2", [{"text": "the a of"}])
    write_source(tmp_path, "qnli", [{"text": "the a", "text_pair": "of and to"}])
    counts = Counter(map(len, real_trace(tmp_path, tiny_tokenizer()).pool))
    assert counts == {3: 2500, 4: 2500, 5: 2500, 8: 2500}


def test_real_texts_are_cut(tmp_path: Path) -> None:
    for name in ("clinc150", "tweeteval_hate", "sst2", "qnli"):
        write_source(tmp_path, name, [{"text": "the a of and to in"}])
    assert {len(row) for row in real_trace(tmp_path, tiny_tokenizer(), max_tokens=5).pool} == {5}


def test_a_folder_without_one_of_the_sources_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path, "clinc150", [{"text": "the"}])
    with pytest.raises(ValueError, match="tweeteval"):
        real_trace(tmp_path, tiny_tokenizer())
