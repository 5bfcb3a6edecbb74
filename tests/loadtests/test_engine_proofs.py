from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from adakron import AdaKronConfig, Engine, Result, RowError
from adakron.encoding import EncodedRow
from loadtests.engine_outcome import Exactness
from loadtests.engine_proofs import bert_base_bank_bytes, compare, measure_exactness
from loadtests.engine_systems import adapter_template, random_adapters, register
from loadtests.engine_trace import generated_trace
from tests.tiny import tiny_backbone


def logits(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_a_difference_is_a_share_of_the_largest_logit() -> None:
    worst, _ = compare(logits(10.5, 1.0), logits(10.0, 1.0), 0.1)
    assert worst == pytest.approx(0.05)


def test_a_difference_of_small_logits_is_taken_as_it_is() -> None:
    worst, _ = compare(logits(0.25, 0.0), logits(0.2, 0.0), 0.1)
    assert worst == pytest.approx(0.05)


def test_another_best_label_counts_where_the_margin_is_clear() -> None:
    assert compare(logits(0.0, 1.0), logits(0.5, 0.0), 0.1)[1]


def test_another_best_label_does_not_count_within_twice_the_tolerance() -> None:
    assert not compare(logits(0.0, 1.0), logits(0.19, 0.0), 0.1)[1]


def measured() -> Exactness:
    backbone = tiny_backbone()
    engine = Engine(backbone, torch.device("cpu"), torch.float32)
    adapters = random_adapters(adapter_template(backbone, AdaKronConfig(bottleneck=12)))
    keys = register(engine, adapters, 20, "x")
    trace = generated_trace(range(4, 60), max_tokens=backbone.max_length, count=100)
    return measure_exactness(engine, keys, trace, texts=40, budget_tokens=200)


def test_the_engine_is_exact_within_the_tolerance() -> None:
    found = measured()
    assert (found.texts, found.flips, found.tolerance) == (40, 0, 1e-5)
    assert found.worst <= 1e-5


def test_an_engine_whose_rows_depend_on_each_other_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.run

    def leaking(engine: Engine, rows: Sequence[EncodedRow]) -> list[Result | RowError]:
        answers = run(engine, rows)
        if len(rows) > 1 and isinstance(answers[0], Result):
            answers[0] = replace(answers[0], logits=answers[0].logits + np.float32(1e-3))
        return answers

    monkeypatch.setattr(Engine, "run", leaking)
    assert measured().worst > 1e-5


def test_a_wrong_answer_in_a_mixed_batch_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    engine = Engine(backbone, torch.device("cpu"), torch.float32)
    keys = register(engine, random_adapters(adapter_template(backbone, AdaKronConfig(bottleneck=12))), 20, "x")
    trace = generated_trace(range(4, 60), max_tokens=backbone.max_length, count=100)
    run = engine.run

    def rotated(rows):  # type: ignore[no-untyped-def]
        if len(rows) == 1:
            return run(rows)
        from dataclasses import replace

        return run([replace(row, ids=list(row.ids)[::-1]) for row in rows])

    monkeypatch.setattr(engine, "run", rotated)
    assert measure_exactness(engine, keys, trace, texts=20, budget_tokens=200).worst > 1e-5


def test_a_bank_of_bert_base_adapters_is_counted_whole() -> None:
    assert bert_base_bank_bytes(torch.device("cpu"), count=1) > 599_232 * 2
