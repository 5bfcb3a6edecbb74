"""Heads of every width at once against the formula: in Triton's interpreter, and on a card where there is one."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from adakron.artefact import Adapter
from adakron.bank import AdapterBank, BankView
from adakron.errors import ShapeError
from tests.adakron.kernels.interpreter import interpreter_process
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not made for this platform")

HEADS = [(2, "linear"), (9, "roberta"), (40, "linear"), (1, "roberta"), (2, "linear"), (17, "roberta")]
ROWS = [0, 3, None, 2, 1, 1, 5, 4, None, 0, 3]  # for each row its head


def adapters(hidden: int = HIDDEN) -> list[Adapter]:
    backbone = tiny_backbone(hidden=hidden)

    def adapter(seed: int, labels: int, kind: str) -> Adapter:
        problem = "regression" if labels == 1 else "single_label_classification"
        return tiny_adapter(backbone, [f"l{n}" for n in range(labels)], seed=seed, head=kind, problem_type=problem)

    return [adapter(seed, *head) for seed, head in enumerate(HEADS)]


def inputs(rows: int, hidden: int = HIDDEN) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, hidden), np.float32)


def run(pooled: np.ndarray, heads: list[int | None], dtype: str, device: str) -> list[np.ndarray | None]:
    """Logits of each row, padded."""
    from adakron.kernels.grouped_heads import grouped_logits

    hidden = pooled.shape[1]
    bank = AdapterBank(hidden, LAYERS, getattr(torch, dtype), torch.device(device))
    placements = [bank.add(adapter) for adapter in adapters(hidden)]
    chosen = [None if head is None else placements[head] for head in heads]
    return grouped_logits(torch.from_numpy(pooled).to(device), BankView(bank), chosen)


def formula(x: np.ndarray, adapter: Adapter, dtype: str) -> np.ndarray:
    """One row in float64, the dense map's numbers as they lie in the bank."""
    kind = getattr(torch, dtype)

    def part(name: str, *, rounded: bool = False) -> np.ndarray:
        tensor = adapter.tensors[name]
        return (tensor.to(kind) if rounded else tensor).double().numpy()

    if adapter.config.head == "linear":
        return part("head.weight") @ x + part("head.bias")
    inner = np.tanh(part("head.dense.weight", rounded=True) @ x + part("head.dense.bias", rounded=True))
    return part("head.out_proj.weight") @ inner + part("head.out_proj.bias")


@pytest.fixture(scope="module")
def interpreter():
    with interpreter_process() as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request):
    if request.param == "cuda":
        return partial(run, device="cuda")
    pool = request.getfixturevalue("interpreter")
    return lambda *work: pool.submit(run, *work, "cpu").result()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hidden", [HIDDEN, 132], ids=["one block", "two blocks"])
def test_every_row_has_the_logits_of_its_own_head(card, hidden, dtype):
    pooled, zoo = inputs(len(ROWS), hidden), adapters(hidden)
    for x, head, found in zip(pooled, ROWS, card(pooled, ROWS, dtype), strict=True):
        if head is None:
            assert found is None
            continue
        labels = HEADS[head][0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:labels], formula(x, zoo[head], dtype), atol=2e-5)
        assert not found[labels:].any(), "what pads a head is zero"


def test_a_row_alone_equals_the_row_among_others_to_the_last_bit(card):
    pooled = inputs(len(ROWS))
    together = card(pooled, ROWS, "float32")
    for n in (1, 3, 6):
        (alone,) = card(pooled[n : n + 1], [ROWS[n]], "float32")
        assert (alone == together[n]).all()


def test_a_bad_row_or_head_spoils_its_own_logits_alone(card):
    pooled = inputs(len(ROWS))
    pooled[4, 3] = np.nan
    found = card(pooled, ROWS, "float32")
    assert [n for n, logits in enumerate(found) if logits is not None and np.isnan(logits[:1]).any()] == [4]


def test_dense_maps_survive_outputs_of_any_size(card):
    pooled = 1e4 * inputs(len(ROWS))
    for n in (1, 4):
        found, adapter = card(pooled, ROWS, "float32")[n], adapters()[ROWS[n]]
        expected = formula(pooled[n], adapter, "float32")
        np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-5)


def test_rows_without_adapter_need_no_launch(card):
    assert card(inputs(2), [None, None], "float32") == [None, None]


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x[0], lambda x: x.T])
def test_vectors_of_another_shape_dtype_or_layout_are_refused(change):
    from adakron.kernels.grouped_heads import grouped_logits

    bank = AdapterBank(HIDDEN, LAYERS, torch.float32, torch.device("cpu"))
    with pytest.raises(ShapeError, match="pooled"):
        grouped_logits(change(torch.zeros(3, HIDDEN)), BankView(bank), [None] * 3)


def test_once_compiled_no_batch_compiles_anything(compiler):
    from adakron.kernels.grouped_heads import compile_heads

    compiled = compiler(90)
    compile_heads(HIDDEN, torch.bfloat16, torch.device("cpu"))
    expected = {id(kernel) for kernel in compiled}
    assert len(expected) == 2, "one for the dense maps, one for the logits"
    for heads in (ROWS, [0], [1, 3], [0, 2, None, 4] * 9):
        run(inputs(len(heads)), heads, "bfloat16", "cpu")
    assert len(compiled) > 2
    assert {id(kernel) for kernel in compiled} == expected
