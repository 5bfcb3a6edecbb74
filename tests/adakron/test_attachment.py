"""Adapters on a transformers model: at the right place, with the right size, and gone without a trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel, RobertaConfig

from adakron import AdaKron, AdaKronConfig, MAdaKron, attach, detach
from adakron.attachment import attach_trained, attached
from adakron.config import Method
from adakron.errors import BackboneError, ConfigError
from adakron.families import sites
from adakron.module import ExpertLinear
from tests.adakron.test_families import tiny_gpt2, tiny_t5
from tests.tiny import FAMILIES, HIDDEN, LAYERS, tiny_backbone

CONFIG = AdaKronConfig(bottleneck=12, factor=4)


def model_of(family: str = "bert") -> PreTrainedModel:
    return tiny_backbone(family).model


def random_weights(adapters: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def token_ids() -> Tensor:
    return torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(3))


def hidden_states(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        states: Tensor = model(input_ids=token_ids()).last_hidden_state
    return states


# Size: the paper's headline figures, counted on real modules.


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_bert_base_with_r_48_trains_599232_parameters_that_are_0_55_percent() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(BertConfig())
    adapters = attach(model, AdaKronConfig(bottleneck=48))
    assert (len(adapters), count(adapters), count(model)) == (12, 599_232, 109_482_240)
    assert round(100 * count(adapters) / count(model), 2) == 0.55


def test_roberta_large_with_r_16_trains_614592_parameters() -> None:
    large = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        model = AutoModel.from_config(large)
    adapters = attach(model, AdaKronConfig(bottleneck=16))
    assert (len(adapters), count(adapters)) == (24, 614_592)


# Attach and detach, for every family.


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_adapters_change_the_output_and_detach_restores_it_bit_for_bit(family: str) -> None:
    model = model_of(family)
    before = hidden_states(model)
    random_weights(attach(model, CONFIG))
    assert (hidden_states(model) - before).abs().max() > 0.1
    detach(model)
    assert torch.equal(hidden_states(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layers_adapter_matters(family: str) -> None:
    model = model_of(family)
    adapters = attach(model, CONFIG)
    random_weights(adapters)
    whole = hidden_states(model)
    for adapter in adapters:
        kept = adapter.up.weight.detach().clone()
        with torch.no_grad():
            adapter.up.weight.zero_()
        assert (hidden_states(model) - whole).abs().max() > 1e-3
        with torch.no_grad():
            adapter.up.weight.copy_(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_sees_the_sites_output_before_residual_and_layer_norm(family: str) -> None:
    """The next LayerNorm gets adapter(W h + b) + attention output, in the first layer of each family."""
    model = model_of(family)
    adapters = attach(model, CONFIG)
    random_weights(adapters)
    seen: dict[str, Tensor] = {}
    site = sites(model)[0]
    if family == "distilbert":
        attention_norm, norm = "transformer.layer.0.sa_layer_norm", "transformer.layer.0.output_layer_norm"
    elif family == "modernbert":
        attention_norm, norm = "layers.0.mlp_norm", "layers.1.attn_norm"
    else:
        attention_norm, norm = (f"encoder.layer.0.{part}.LayerNorm" for part in ("attention.output", "output"))
    site.register_forward_pre_hook(lambda _, inputs: seen.update(h=inputs[0]))
    model.get_submodule(attention_norm).register_forward_hook(
        lambda _, inputs, output: seen.update(before=inputs[0], after=output)
    )
    model.get_submodule(norm).register_forward_pre_hook(lambda _, inputs: seen.update(normed=inputs[0]))
    hidden_states(model)
    residual = seen["before" if family == "modernbert" else "after"]  # pre-LN layers add what they have not normed
    with torch.no_grad():
        wanted = adapters[0](F.linear(seen["h"], site.weight, site.bias)) + residual
    assert torch.allclose(seen["normed"], wanted, atol=1e-6)


Place = Any  # a function of (x, residual, adapter, dropout, LayerNorm) -> the layer's output


@pytest.mark.parametrize(
    ("place", "right"),
    [
        (lambda x, residual, adapter, dropout, norm: norm(dropout(adapter(x)) + residual), True),
        (lambda x, residual, adapter, dropout, norm: norm(adapter(dropout(x)) + residual), False),
        (lambda x, residual, adapter, dropout, norm: norm(adapter(dropout(x) + residual)), False),
        (lambda x, residual, adapter, dropout, norm: adapter(norm(dropout(x) + residual)), False),
        (lambda x, residual, adapter, dropout, norm: norm(dropout(adapter(x) - x) + residual), False),
    ],
    ids=["before dropout", "after dropout", "after the residual", "after LayerNorm", "without its own residual"],
)
def test_bert_layer_in_training_is_layer_norm_of_dropout_of_adapter_plus_residual(place: Place, right: bool) -> None:
    """One layer written out by hand, with live dropout: the same seed draws the same masks in both."""
    model = model_of("bert")
    adapters = attach(model, CONFIG)
    random_weights(adapters)
    model.train()
    layer = model.get_submodule("encoder.layer.1")
    x = torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(4))

    torch.manual_seed(7)
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output

    torch.manual_seed(7)
    attention = layer.attention(x)[0]
    h = F.gelu(F.linear(attention, layer.intermediate.dense.weight, layer.intermediate.dense.bias))
    site = F.linear(h, layer.output.dense.weight, layer.output.dense.bias)
    by_hand = place(site, attention, adapters[1], layer.output.dropout, layer.output.LayerNorm)

    assert layer.output.dropout.p == 0.1
    assert torch.allclose(output, by_hand, atol=1e-6) is right


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_unchanged_and_backbone_frozen(family: str) -> None:
    model = model_of(family)
    model.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = attach(model, CONFIG)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in adapters.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_adapter_and_nothing_else(family: str) -> None:
    model = model_of(family)
    adapters = attach(model, CONFIG)
    model(input_ids=token_ids()).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapters.parameters())
    assert all(p.grad is None for p in model.parameters())


# What is attached.


def test_adapters_stand_at_their_layers_in_order() -> None:
    model = model_of()
    adapters = attach(model, CONFIG)
    assert attached(model) == list(adapters)
    for site, adapter in zip(sites(model), adapters, strict=True):
        assert [hook.adapter for hook in site._forward_hooks.values()] == [adapter]


@pytest.mark.parametrize(("first_layer", "number"), [(0, LAYERS), (1, 2), (2, 1)])
def test_layers_below_first_layer_carry_no_adapter(first_layer: int, number: int) -> None:
    model = model_of()
    adapters = attach(model, AdaKronConfig(bottleneck=12, factor=4, first_layer=first_layer))
    assert len(adapters) == number
    assert [len(site._forward_hooks) for site in sites(model)] == [0] * first_layer + [1] * number


def test_first_layer_beyond_the_model_is_refused() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="3") as caught:
        attach(model, AdaKronConfig(bottleneck=12, factor=4, first_layer=3))
    assert caught.value.key == "first_layer"
    assert attached(model) == []


@pytest.mark.parametrize(
    ("method", "classes"),
    [
        ("adakron", (AdaKron, nn.Linear, nn.Linear)),
        ("madakron-partial", (MAdaKron, nn.Linear, ExpertLinear)),
        ("madakron-full", (MAdaKron, ExpertLinear, ExpertLinear)),
    ],
)
def test_method_decides_what_has_experts(method: Method, classes: tuple[type, type, type]) -> None:
    adapters = attach(model_of(), CONFIG, method, experts=3)
    assert all((type(a), type(a.a1), type(a.a2)) == classes for a in adapters)
    if method != "adakron":
        assert all(a.a2.weight.shape == (3, 4, HIDDEN) for a in adapters)


@pytest.mark.parametrize("method", ["lora", "madakron", "", None])
def test_unknown_method_is_refused_by_name(method: Any) -> None:
    model = model_of()
    with pytest.raises(ConfigError, match=repr(method)) as caught:
        attach(model, CONFIG, method)
    assert caught.value.key == "method"
    assert attached(model) == []


def test_order_reaches_the_adapters() -> None:
    adapters = attach(model_of(), AdaKronConfig(bottleneck=12, factor=4, order="a1_a2"))
    assert [adapter.order for adapter in adapters] == ["a1_a2"] * LAYERS


def test_trained_adapters_give_what_attached_ones_gave() -> None:
    model = model_of()
    adapters = attach(model, AdaKronConfig(bottleneck=12, factor=4, first_layer=1))
    random_weights(adapters)
    wanted = hidden_states(model)
    detach(model)
    attach_trained(model, [adapter.merged() for adapter in adapters], first_layer=1)
    assert torch.equal(hidden_states(model), wanted)


@pytest.mark.parametrize(("number", "first_layer"), [(2, 0), (4, 0), (3, 1), (0, 0)])
def test_another_number_of_trained_adapters_than_layers_is_refused(number: int, first_layer: int) -> None:
    model = model_of()
    with pytest.raises(ConfigError, match=f"found {number}"):
        attach_trained(model, [AdaKron(HIDDEN, CONFIG) for _ in range(number)], first_layer)
    assert attached(model) == []


# Refusals.


@pytest.mark.parametrize("again", ["attach", "attach_trained"])
def test_second_attach_is_refused_and_leaves_the_first_alone(again: str) -> None:
    model = model_of()
    adapters = attach(model, CONFIG)
    others = [AdaKron(HIDDEN, CONFIG) for _ in range(LAYERS)]
    with pytest.raises(BackboneError, match="carries adapters already"):
        attach(model, CONFIG) if again == "attach" else attach_trained(model, others)
    assert attached(model) == list(adapters)


def test_attach_after_detach_is_allowed() -> None:
    model = model_of()
    attach(model, CONFIG)
    detach(model)
    assert attached(model) == []
    adapters = attach(model, CONFIG)
    assert attached(model) == list(adapters)


def test_detach_leaves_other_peoples_hooks_alone() -> None:
    model = model_of()
    calls: list[int] = []
    for site in sites(model):
        site.register_forward_hook(lambda *_: calls.append(1))
    attach(model, CONFIG)
    detach(model)
    hidden_states(model)
    assert len(calls) == LAYERS


def test_detach_without_adapters_does_nothing() -> None:
    model = model_of()
    before = hidden_states(model)
    detach(model)
    assert torch.equal(hidden_states(model), before)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_t5])
def test_unsupported_family_is_refused_by_name_and_left_as_it_was(make: Any) -> None:
    model = make()
    with pytest.raises(BackboneError, match=model.config.model_type):
        attach(model, CONFIG)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_model_with_a_task_head_is_refused() -> None:
    with pytest.raises(BackboneError, match="BertForSequenceClassification"):
        attach(BertForSequenceClassification(model_of().config), CONFIG)


def test_attach_touches_this_model_alone() -> None:
    other = model_of()
    before = hidden_states(other)
    random_weights(attach(model_of(), CONFIG))
    assert torch.equal(hidden_states(other), before)
    assert isinstance(other, BertModel)
