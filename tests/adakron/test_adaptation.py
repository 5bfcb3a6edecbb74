import numpy as np
import pytest
import torch

from adakron import AdaKronConfig, Adapter
from adakron.adaptation import adapt_packed, adapt_padded
from adakron.bank import AdapterBank, BankView, SiteShape
from adakron.plan import make_plan
from tests.reference import kron_forward
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone

LENGTHS = (5, 1, 9, 2, 17, 9)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def bank():
    return AdapterBank(HIDDEN, LAYERS, torch.float32, torch.device("cpu"))


def oracle(adapter: Adapter, layer: int, x: torch.Tensor) -> np.ndarray:
    prefix = f"layers.{layer}."
    tensors = {n.removeprefix(prefix): t.double().numpy() for n, t in adapter.tensors.items() if n.startswith(prefix)}
    return np.stack([kron_forward(token, tensors, adapter.config.order) for token in x.double().numpy()])


@pytest.mark.parametrize("order", ["a2_a1", "a1_a2"])
def test_padded_rows_equal_the_equation_token_by_token(backbone, bank, order):
    adapters = [tiny_adapter(backbone, seed=n, adakron=AdaKronConfig(12, 4, order)) for n in range(3)]
    placements = [bank.add(adapter) for adapter in adapters]
    x = torch.randn(3, 7, HIDDEN)
    slots = torch.tensor([p.site_slot for p in placements])
    for layer in range(LAYERS):
        y = adapt_padded(x, BankView(bank).site(placements[0].site, layer), SiteShape(4, 3, 0), slots)
        for row, adapter in enumerate(adapters):
            np.testing.assert_allclose(y[row].numpy(), oracle(adapter, layer, x[row]), atol=2e-5)


def test_slot_zero_is_the_identity(backbone, bank):
    placement = bank.add(tiny_adapter(backbone))
    x = torch.randn(2, 7, HIDDEN)
    y = adapt_padded(x, BankView(bank).site(placement.site, 1), placement.site, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(x, y)


@pytest.mark.parametrize("mix", ["many", "one", "with base", "two shapes", "first_layer"])
def test_packed_tokens_equal_the_equation_token_by_token(backbone, bank, mix):
    shapes = [AdaKronConfig(12, 4)] * len(LENGTHS)
    if mix == "two shapes":
        shapes = [AdaKronConfig(12, 4), AdaKronConfig(20, 4), AdaKronConfig(10, 2)] * 2
    if mix == "first_layer":
        shapes = [AdaKronConfig(12, 4), AdaKronConfig(12, 4, first_layer=2)] * 3
    adapters = [tiny_adapter(backbone, seed=n, adakron=shape) for n, shape in enumerate(shapes)]
    placements = [bank.add(adapter) for adapter in adapters]
    if mix == "one":
        adapters, placements = adapters[:1] * len(LENGTHS), placements[:1] * len(LENGTHS)
    users = [None if mix == "with base" and n % 2 else n for n in range(len(LENGTHS))]
    plan = make_plan(
        [[n] * length for n, length in enumerate(LENGTHS)],
        [[0] * length for length in LENGTHS],
        [None if n is None else placements[n] for n in users],
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    x = torch.randn(sum(LENGTHS), HIDDEN)
    for layer in range(LAYERS):
        y = adapt_packed(x.clone(), layer, BankView(bank), plan)
        for packed, row in enumerate(plan.order):
            begin = int(plan.starts[packed])
            part = slice(begin, begin + LENGTHS[row])
            adapter = adapters[row] if users[row] is not None else None
            if adapter is None or layer < adapter.config.first_layer:
                assert torch.equal(y[part], x[part])
            else:
                np.testing.assert_allclose(y[part].numpy(), oracle(adapter, layer, x[part]), atol=2e-5)


def test_nan_in_one_adapter_stays_in_its_rows(backbone, bank):
    placements = [bank.add(tiny_adapter(backbone, seed=n)) for n in range(len(LENGTHS))]
    bank.sites[placements[2].site].tensors["up"][placements[2].site_slot] = float("nan")
    plan = make_plan(
        [[n] * length for n, length in enumerate(LENGTHS)],
        [[0] * length for length in LENGTHS],
        placements,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    y = adapt_packed(torch.randn(sum(LENGTHS), HIDDEN), 0, BankView(bank), plan)
    sick = {row for row in range(len(LENGTHS)) if torch.isnan(y[plan.ids == row]).any()}
    assert sick == {2}
