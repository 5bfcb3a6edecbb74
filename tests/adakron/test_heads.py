"""Pooling and heads against numpy and against transformers' own heads."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from adakron.errors import BackboneError
from adakron.heads import LinearHead, RobertaHead, head_shapes, make_head, pool
from tests.tiny import HIDDEN, tiny_backbone, tiny_config

B, T, L = 3, 7, 5
KINDS: tuple[Literal["linear", "roberta"], ...] = ("linear", "roberta")
MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]])


def hidden() -> Tensor:
    return torch.randn(B, T, HIDDEN, generator=torch.Generator().manual_seed(0))


def random_head(kind: Literal["linear", "roberta"], dropout: float = 0.1) -> LinearHead | RobertaHead:
    head = make_head(kind, HIDDEN, L, dropout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return head


# Pooling.


def test_cls_is_the_first_token() -> None:
    assert torch.equal(pool(hidden(), MASK, "cls", None), hidden()[:, 0])


def test_mean_is_over_a_rows_tokens_with_the_special_ones() -> None:
    pooled, x = pool(hidden(), MASK, "mean", None), hidden().numpy()
    wanted = np.stack([x[0, :3].mean(0), x[1].mean(0), x[2, 0]])
    assert np.abs(pooled.numpy() - wanted).max() < 1e-6


def test_mean_does_not_see_padding() -> None:
    x = hidden()
    other = torch.where(MASK[..., None] == 1, x, torch.full_like(x, 1e3))
    assert torch.allclose(pool(x, MASK, "mean", None), pool(other, MASK, "mean", None), atol=1e-6)


def test_pooler_is_the_backbones_own() -> None:
    backbone = tiny_backbone("bert")
    assert backbone.pooler is not None
    ids = torch.tensor([[2, 9, 8, 3]])
    output = backbone.model(input_ids=ids)
    pooled = pool(output.last_hidden_state, torch.ones_like(ids), "pooler", backbone.pooler)
    assert torch.equal(pooled, output.pooler_output)


def test_pooler_that_the_checkpoint_lacks_is_refused() -> None:
    with pytest.raises(BackboneError, match="no pooler") as caught:
        pool(hidden(), MASK, "pooler", None)
    assert caught.value.hint is not None
    assert "mean" in caught.value.hint


# Heads.


def test_linear_head_is_w_x_plus_b() -> None:
    head, x = random_head("linear").eval(), hidden()[:, 0]
    assert isinstance(head, LinearHead)
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    wanted = np.stack([weight @ row + bias for row in x.numpy()])
    assert np.abs(head(x).detach().numpy() - wanted).max() < 1e-5


def test_roberta_head_is_transformers_own() -> None:
    head, x = random_head("roberta").eval(), hidden()
    config = tiny_backbone("roberta").model.config
    config.num_labels = L
    theirs = RobertaClassificationHead(config).eval()
    theirs.load_state_dict(head.state_dict())
    assert torch.allclose(head(x[:, 0]), theirs(x), atol=1e-6)


def test_roberta_head_is_tanh_between_two_linear_maps() -> None:
    head, x = random_head("roberta").eval(), hidden()[:, 0]
    t = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    inner = np.tanh(x.double().numpy() @ t["dense.weight"].T + t["dense.bias"])
    wanted = inner @ t["out_proj.weight"].T + t["out_proj.bias"]
    assert np.abs(head(x).detach().numpy() - wanted).max() < 1e-5


def dropouts(head: nn.Module, x: Tensor) -> list[Tensor]:
    """What the head's dropout was given, in order."""
    given: list[Tensor] = []
    handle = head.get_submodule("dropout").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    head(x)
    handle.remove()
    return given


def test_linear_head_drops_its_input() -> None:
    x = hidden()[:, 0]
    given = dropouts(random_head("linear"), x)
    assert len(given) == 1
    assert torch.equal(given[0], x)


def test_roberta_head_drops_its_input_and_the_tanh() -> None:
    head, x = random_head("roberta", dropout=0.0), hidden()[:, 0]
    assert isinstance(head, RobertaHead)
    given = dropouts(head, x)
    assert len(given) == 2
    assert torch.equal(given[0], x)
    assert torch.equal(given[1], head.dense(x).tanh())


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_live_in_training_and_off_in_eval(kind: Literal["linear", "roberta"]) -> None:
    head, x = random_head(kind, dropout=0.5), hidden()[:, 0]
    assert not torch.equal(head.train()(x), head.train()(x))
    assert torch.equal(head.eval()(x), head.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_new_head_has_small_weights_and_zero_biases(kind: Literal["linear", "roberta"]) -> None:
    torch.manual_seed(0)
    for name, parameter in make_head(kind, 768, 50).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_head_shapes_are_those_of_the_module(kind: Literal["linear", "roberta"]) -> None:
    config = tiny_config(tiny_backbone(), [f"l{index}" for index in range(L)], head=kind)
    module = {f"head.{name}": tuple(t.shape) for name, t in make_head(kind, HIDDEN, L).state_dict().items()}
    assert head_shapes(config) == module
