import numpy as np
import pytest
import torch

from adakron import AdaKronConfig
from adakron.adaptation import adapt_padded
from adakron.bank import AdapterBank, BankView, SiteShape
from tests.reference import kron_forward_layer
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def bank():
    return AdapterBank(HIDDEN, LAYERS, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("order", ["a2_a1", "a1_a2"])
def test_padded_rows_equal_the_equation_token_by_token(backbone, bank, order):
    adapters = [tiny_adapter(backbone, seed=n, adakron=AdaKronConfig(12, 4, order)) for n in range(3)]
    placements = [bank.add(adapter) for adapter in adapters]
    x = torch.randn(3, 7, HIDDEN)
    slots = torch.tensor([p.site_slot for p in placements])
    for layer in range(LAYERS):
        y = adapt_padded(x, BankView(bank).site(placements[0].site, layer), SiteShape(4, 3, 0), slots)
        for row, adapter in enumerate(adapters):
            np.testing.assert_allclose(y[row].numpy(), kron_forward_layer(adapter, layer, x[row]), atol=2e-5)


def test_slot_zero_is_the_identity(backbone, bank):
    placement = bank.add(tiny_adapter(backbone))
    x = torch.randn(2, 7, HIDDEN)
    y = adapt_padded(x, BankView(bank).site(placement.site, 1), placement.site, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(x, y)
