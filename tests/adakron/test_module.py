"""The method against the equation, written out with numpy in float64."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adakron import AdaKron, AdaKronConfig, MAdaKron
from adakron.module import INIT_STD, ExpertLinear, kronecker
from tests.reference import kron_forward

D, K, Q = 20, 4, 3
CONFIG = AdaKronConfig(bottleneck=K * Q, factor=K)
ORDERS = ("a2_a1", "a1_a2")
SHARES = ("partial", "full")


def random_weights(module: torch.nn.Module, seed: int = 0) -> None:
    """Large enough that every factor, every bias and the shape of GELU matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))


def adapter(order: Literal["a2_a1", "a1_a2"] = "a2_a1") -> AdaKron:
    module = AdaKron(D, AdaKronConfig(bottleneck=K * Q, factor=K, order=order)).double()
    random_weights(module)
    return module


def madakron(share: Literal["partial", "full"], experts: int = 3) -> MAdaKron:
    module = MAdaKron(D, CONFIG, share=share, experts=experts)
    random_weights(module)
    return module


def inputs(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_equation(module: AdaKron, x: Tensor, order: str) -> np.ndarray:
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    rows = [kron_forward(row, tensors, order) for row in x.reshape(-1, D).numpy()]
    return np.stack(rows).reshape(x.shape)


def difference(a: Tensor, b: np.ndarray) -> float:
    return float(np.abs(a.detach().numpy() - b).max())


# The product.


@pytest.mark.parametrize("order", ORDERS)
def test_kronecker_is_numpy_kron_in_the_order_asked(order: str) -> None:
    u, v = torch.randn(K), torch.randn(Q)
    wanted = np.kron(u, v) if order == "a2_a1" else np.kron(v, u)
    assert np.array_equal(kronecker(u, v, order).numpy(), wanted)


def test_element_i_j_lands_at_i_q_plus_j_or_at_j_k_plus_i() -> None:
    u, v = torch.randn(K), torch.randn(Q)
    a2_first, a1_first = kronecker(u, v, "a2_a1"), kronecker(u, v, "a1_a2")
    for i in range(K):
        for j in range(Q):
            assert a2_first[i * Q + j] == u[i] * v[j] == a1_first[j * K + i]


def test_kronecker_takes_any_leading_shape() -> None:
    u, v = torch.randn(2, 5, K), torch.randn(2, 5, Q)
    product = kronecker(u, v, "a2_a1")
    assert product.shape == (2, 5, K * Q)
    assert torch.equal(product[1, 3], torch.kron(u[1, 3], v[1, 3]))


# AdaKron.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(), (7,), (5, 7)])
def test_forward_is_the_equation(order: Literal["a2_a1", "a1_a2"], shape: tuple[int, ...]) -> None:
    module, x = adapter(order), inputs(*shape)
    assert difference(module(x), by_equation(module, x, order)) < 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_swapped_order_gives_other_answers(order: Literal["a2_a1", "a1_a2"]) -> None:
    module, x = adapter(order), inputs(7)
    other = ORDERS[1 - ORDERS.index(order)]
    assert difference(module(x), by_equation(module, x, other)) > 0.1


def test_gelu_is_the_exact_one_and_not_its_tanh_approximation() -> None:
    module = AdaKron(2, AdaKronConfig(bottleneck=1, factor=1)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.a1.bias.fill_(1.0)
        module.a2.bias.fill_(-2.2)  # where the two differ most
        module.up.weight.fill_(1.0)
    exact = -2.2 * 0.5 * (1 + math.erf(-2.2 / math.sqrt(2)))
    approximate = float(F.gelu(torch.tensor(-2.2, dtype=torch.float64), approximate="tanh"))
    assert abs(exact - approximate) > 1e-4
    assert float(module(torch.zeros(2, dtype=torch.float64))[0].detach()) == pytest.approx(exact, abs=1e-12)


def test_residual_is_the_adapters_own_input() -> None:
    module, x = adapter(), inputs(7)
    with torch.no_grad():
        module.up.weight.zero_()
        module.up.bias.zero_()
    assert torch.equal(module(x), x)


def test_forward_leaves_its_input_alone() -> None:
    x = inputs(7)
    before = x.clone()
    y = adapter()(x)
    assert torch.equal(x, before)
    assert y.data_ptr() != x.data_ptr()


def test_tokens_do_not_see_each_other() -> None:
    module, x = adapter(), inputs(7)
    alone = torch.stack([module(token) for token in x])
    assert difference(module(x), alone.detach().numpy()) < 1e-12


def test_tensor_names_and_shapes_are_those_of_the_artefact() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in adapter().state_dict().items()} == {
        "a1.weight": (Q, D),
        "a1.bias": (Q,),
        "a2.weight": (K, D),
        "a2.bias": (K,),
        "up.weight": (D, K * Q),
        "up.bias": (D,),
    }


@pytest.mark.parametrize(("hidden_size", "bottleneck", "count"), [(768, 48, 49_936), (1024, 16, 25_608)])
def test_parameter_count_of_one_layer_is_that_of_the_paper(hidden_size: int, bottleneck: int, count: int) -> None:
    config = AdaKronConfig(bottleneck=bottleneck)
    with torch.device("meta"):
        module = AdaKron(hidden_size, config)
    assert sum(parameter.numel() for parameter in module.parameters()) == count
    assert config.parameters_per_layer(hidden_size) == count


# The start of training.


def test_new_adapter_is_near_the_identity_and_not_on_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 768)
    change = (AdaKron(768, AdaKronConfig())(x) - x).abs().max().item()
    assert 0 < change < 0.05


def test_new_adapter_has_zero_biases_and_a_small_random_up_projection() -> None:
    torch.manual_seed(0)
    module = AdaKron(768, AdaKronConfig())
    assert all(not linear.bias.any() for linear in (module.a1, module.a2, module.up))
    assert module.up.weight.std().item() == pytest.approx(INIT_STD, rel=0.02)
    assert module.up.weight.mean().abs().item() < INIT_STD / 50
    assert INIT_STD == 1e-3


@pytest.mark.parametrize("name", ["a1.weight", "a1.bias", "a2.weight", "a2.bias", "up.weight", "up.bias"])
def test_every_part_has_a_gradient_in_the_first_step(name: str) -> None:
    torch.manual_seed(0)
    module = AdaKron(D, CONFIG)
    (module(torch.randn(7, D)) * torch.randn(7, D)).sum().backward()
    gradient = module.get_parameter(name).grad
    assert gradient is not None
    assert bool((gradient != 0).all())


def test_gradients_are_those_of_finite_differences() -> None:
    module, x = adapter(), inputs(2)
    assert torch.autograd.gradcheck(module, x.requires_grad_(True))


def test_merged_adakron_is_the_adapter_itself() -> None:
    module = adapter()
    assert module.merged() is module


# MAdaKron.


def touched(linear: ExpertLinear) -> list[int]:
    """Experts whose weight and bias got a gradient."""
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None
    by_weight = linear.weight.grad.flatten(1).abs().sum(1).nonzero().flatten().tolist()
    assert by_weight == linear.bias.grad.abs().sum(1).nonzero().flatten().tolist()
    return by_weight


def test_partial_shares_a1_and_full_has_experts_for_both() -> None:
    partial, full = madakron("partial"), madakron("full")
    assert isinstance(partial.a1, torch.nn.Linear)
    assert isinstance(partial.a2, ExpertLinear)
    assert isinstance(full.a1, ExpertLinear)
    assert isinstance(full.a2, ExpertLinear)
    assert full.a1.weight.shape == (3, Q, D)
    assert full.a2.weight.shape == partial.a2.weight.shape == (3, K, D)


def test_full_is_the_default() -> None:
    assert isinstance(MAdaKron(D, CONFIG).a1, ExpertLinear)


@pytest.mark.parametrize("experts", [-1, 0, 1])
def test_fewer_than_two_experts_are_refused(experts: int) -> None:
    with pytest.raises(ValueError, match=str(experts)):
        MAdaKron(D, CONFIG, experts=experts)


@pytest.mark.parametrize("share", SHARES)
def test_training_call_gives_one_expert_of_each_factor_a_gradient(share: Literal["partial", "full"]) -> None:
    module = madakron(share).train()
    for seed in range(8):
        torch.manual_seed(seed)
        module.zero_grad()
        module(torch.randn(5, D)).square().sum().backward()
        assert len(touched(module.a2)) == 1
        if isinstance(module.a1, ExpertLinear):
            assert len(touched(module.a1)) == 1


@pytest.mark.parametrize("share", SHARES)
def test_training_call_is_a_plain_adapter_of_the_experts_drawn(share: Literal["partial", "full"]) -> None:
    module = madakron(share).train()
    x = torch.randn(5, D)
    y = module(x)
    y.square().sum().backward()
    plain = AdaKron(D, CONFIG)
    plain.up.load_state_dict(module.up.state_dict())
    for source, target in ((module.a1, plain.a1), (module.a2, plain.a2)):
        if isinstance(source, ExpertLinear):
            expert = touched(source)[0]
            target.load_state_dict({"weight": source.weight[expert], "bias": source.bias[expert]})
        else:
            target.load_state_dict(source.state_dict())
    assert torch.allclose(y, plain(x), atol=1e-6)


def test_every_expert_is_drawn_sooner_or_later() -> None:
    module = madakron("full", experts=4).train()
    torch.manual_seed(0)
    drawn: set[tuple[int, int]] = set()
    for _ in range(200):
        module.zero_grad()
        module(torch.randn(2, D)).sum().backward()
        assert isinstance(module.a1, ExpertLinear)
        drawn.add((touched(module.a1)[0], touched(module.a2)[0]))
    assert len(drawn) == 16  # the two factors draw independently


@pytest.mark.parametrize("share", SHARES)
def test_seed_repeats_the_draws(share: Literal["partial", "full"]) -> None:
    module, x = madakron(share).train(), torch.randn(5, D)

    def calls(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([module(x) for _ in range(12)])

    assert torch.equal(calls(3), calls(3))
    assert not torch.equal(calls(3), calls(4))


@pytest.mark.parametrize("share", SHARES)
def test_eval_is_the_average_of_the_experts_and_draws_nothing(share: Literal["partial", "full"]) -> None:
    module, x = madakron(share).eval(), torch.randn(5, D)
    plain = AdaKron(D, CONFIG)
    plain.up.load_state_dict(module.up.state_dict())
    for source, target in ((module.a1, plain.a1), (module.a2, plain.a2)):
        averaged = isinstance(source, ExpertLinear)
        weight = source.weight.detach().mean(0) if averaged else source.weight.detach()
        bias = source.bias.detach().mean(0) if averaged else source.bias.detach()
        target.load_state_dict({"weight": weight, "bias": bias})
    state = torch.get_rng_state()
    assert torch.allclose(module(x), plain(x), atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("order", ORDERS)
def test_merged_is_the_module_in_eval_mode(share: Literal["partial", "full"], order: Literal["a2_a1", "a1_a2"]) -> None:
    module = MAdaKron(D, AdaKronConfig(bottleneck=K * Q, factor=K, order=order), share=share, experts=3)
    random_weights(module)
    x = torch.randn(5, 7, D)
    merged = module.merged()
    assert type(merged) is AdaKron
    assert (module.eval()(x) - merged(x)).abs().max().item() < 1e-6


def test_merged_has_its_own_memory() -> None:
    module = madakron("partial")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.merged().parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_new_madakron_has_different_experts_zero_biases_and_is_near_the_identity() -> None:
    torch.manual_seed(0)
    module = MAdaKron(768, AdaKronConfig())
    for linear in (module.a1, module.a2):
        assert isinstance(linear, ExpertLinear)
        assert not linear.bias.any()
        assert not torch.equal(linear.weight[0], linear.weight[1])
    x = torch.randn(64, 768)
    assert 0 < (module(x) - x).abs().max().item() < 0.05
