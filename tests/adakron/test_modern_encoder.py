"""ModernBERT on packed tokens: windows, rotations and norms, held to the transformers model."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, ModernBertConfig, PreTrainedModel

from adakron import AdaKronConfig, Backbone, Engine, Row
from adakron.bank import AdapterBank, BankView
from adakron.encoder import make_encoder, make_kernels
from adakron.modern_encoder import ModernEncoder
from adakron.plan import make_plan
from tests.reference import clone_model
from tests.tiny import HIDDEN, LAYERS, MAX_POSITIONS, WORDS, tiny_adapter, tiny_backbone, tiny_tokenizer

CPU = torch.device("cpu")
WINDOW = 4
LENGTHS = [1, 2, WINDOW, WINDOW + 1, WINDOW + 2, 2 * WINDOW + 1, 17, 29, MAX_POSITIONS]


def backbone_of(**changes: Any) -> Backbone:
    """The tiny one with another configuration; every parameter of it matters."""
    config = ModernBertConfig(**(tiny_backbone("modernbert").model.config.to_dict() | changes))
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return Backbone.from_model(model, tiny_tokenizer(), "tiny-modernbert")


def ids_of(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.integers(5, len(WORDS), length) for length in lengths]


def hidden_states(
    backbone: Backbone, lengths: list[int], *, dtype: torch.dtype = torch.float32, **options: Any
) -> list:
    """Of each row, [T, D], out of one batch."""
    encoder = make_encoder(backbone, dtype, CPU, **options)
    ids = ids_of(lengths)
    plan = make_plan(ids, [np.zeros_like(row) for row in ids], [None] * len(ids))
    with torch.inference_mode():
        packed = encoder(plan, BankView(AdapterBank(HIDDEN, LAYERS, dtype, CPU, None)))
    parts = packed.split(plan.stages[-1].lengths.tolist())
    return [parts[plan.order.index(row)].float() for row in range(len(ids))]


def stock(backbone: Backbone, lengths: list[int], dtype: torch.dtype = torch.float32) -> list:
    model = clone_model(backbone).to(dtype)
    with torch.inference_mode():
        return [model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].float() for ids in ids_of(lengths)]


BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}
CHANGES = {
    "as published": {},
    "biases everywhere": BIASES,
    "another activation": {"hidden_activation": "relu"},
    "local layers alone": {"layer_types": ["sliding_attention"] * LAYERS},
    "no local layer": {"layer_types": ["full_attention"] * LAYERS},
    "an odd window": {"local_attention": 7},
    "other frequencies": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
        }
    },
}


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("what", list(CHANGES))
def test_every_row_of_a_batch_is_that_of_the_transformers_model(what: str, kernels: str) -> None:
    backbone = backbone_of(**CHANGES[what])
    assert backbone.model.config.sliding_window in (WINDOW, WINDOW - 1)
    for found, wanted in zip(hidden_states(backbone, LENGTHS, kernels=kernels), stock(backbone, LENGTHS), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("longest", [WINDOW + 1, WINDOW + 2])
def test_batches_of_short_rows_alone_need_no_window(longest: int) -> None:
    backbone = tiny_backbone("modernbert")
    lengths = list(range(1, longest + 1))
    for found, wanted in zip(hidden_states(backbone, lengths), stock(backbone, lengths), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_bfloat16_stays_within_its_bound_of_the_transformers_model(kernels: str) -> None:
    backbone = tiny_backbone("modernbert")
    found = hidden_states(backbone, LENGTHS, dtype=torch.bfloat16, kernels=kernels)
    for row, exact, half in zip(found, stock(backbone, LENGTHS), stock(backbone, LENGTHS, torch.bfloat16), strict=True):
        bound = 2e-2 * max(1.0, float(exact.abs().max()))
        assert (row - exact).abs().max() <= bound
        assert (row - half).abs().max() <= bound


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_invariant_rows_do_not_change_by_a_bit_with_the_batch(kernels: str) -> None:
    backbone = tiny_backbone("modernbert")
    engine = Engine(backbone, CPU, torch.float32, batch_invariant=True, kernels=kernels)
    for n in range(3):
        engine.add(f"a{n}", tiny_adapter(backbone, seed=n, adakron=AdaKronConfig(12, 4, first_layer=n % 2)))
    rows = [Row(f"a{n % 3}", input_ids=ids.tolist()) for n, ids in enumerate(ids_of([3, 5, 7, 30, 4, 12, 9, 2]))]
    together = engine.classify(rows)
    for row, answer in zip(rows, together, strict=True):
        assert np.array_equal(engine.classify([row])[0].logits, answer.logits)


def test_stretched_frequencies_run_as_the_transformers_model_itself() -> None:
    scaled = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
    backbone = backbone_of(rope_parameters={"full_attention": scaled, "sliding_attention": scaled})
    wanted = stock(backbone, LENGTHS)
    engine = Engine(backbone, CPU, torch.float32)
    assert engine.info().path == "padded"
    adapter = tiny_adapter(backbone, scale=0.0)
    engine.add("none", adapter)
    rows = [Row(input_ids=ids.tolist()) for ids in ids_of(LENGTHS)]
    for answer, hidden in zip(engine.classify(rows), wanted, strict=True):
        np.testing.assert_allclose(answer.embedding, hidden.mean(0).numpy(), atol=1e-5)


def test_kernels_without_a_norm_add_what_adapters_and_residual_give() -> None:
    backbone = tiny_backbone("modernbert")
    bank = AdapterBank(HIDDEN, LAYERS, torch.float32, CPU, None)
    ids = ids_of([3, 9])
    stage = make_plan(ids, [np.zeros_like(row) for row in ids], [None, None]).stages[0]
    x, residual = torch.randn(12, HIDDEN), torch.randn(12, HIDDEN)
    for choice in ("auto", "eager"):
        kernels = make_kernels(choice, 2, torch.float32, CPU, invariant=False)
        found = kernels.begin(stage, BankView(bank)).adapt_add(x.clone(), residual, 0)
        torch.testing.assert_close(found, x + residual)
    assert isinstance(make_encoder(backbone, torch.float32, CPU), ModernEncoder)
