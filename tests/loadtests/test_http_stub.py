import torch

from adakron import Engine, Result, Row, RowError
from loadtests.http_stub import N_TOKENS, StubEngine
from tests.tiny import tiny_backbone


def test_every_row_has_an_answer_at_once_and_the_bookkeeping_is_the_engines_own() -> None:
    engine = StubEngine(tiny_backbone(), torch.device("cpu"), torch.float32, kernels="eager")
    assert isinstance(engine, Engine)
    with engine.lease(None) as lease:
        encoded = engine.encode([Row(text="a"), Row(text="b")], [lease, lease])
        answers = engine.run([row for row in encoded if not isinstance(row, RowError)])
    assert [answer.n_tokens for answer in answers if isinstance(answer, Result)] == [N_TOKENS] * 2
    assert engine.residency().leases == 0
