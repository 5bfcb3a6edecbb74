"""Where adapters attach, for every supported encoder, and the refusal of all others."""

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    RobertaForMaskedLM,
    T5Config,
    T5Model,
)

from adakron.errors import BackboneError
from adakron.families import FAMILIES, family_named, family_of, sites
from tests.tiny import FAMILIES as TINY_FAMILIES
from tests.tiny import HIDDEN, LAYERS, tiny_backbone

INTERMEDIATE = 28


def tiny_gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(n_embd=20, n_layer=2, n_head=4, n_positions=16, vocab_size=30))


def tiny_t5() -> PreTrainedModel:
    return T5Model(T5Config(d_model=20, d_kv=5, d_ff=28, num_layers=2, num_heads=4, vocab_size=30))


def test_every_supported_family_has_a_tiny_backbone_to_test_it() -> None:
    assert set(TINY_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_site_is_the_last_linear_map_of_each_feed_forward_block(family: str) -> None:
    model = tiny_backbone(family).model
    found = sites(model)
    assert [(site.in_features, site.out_features) for site in found] == [(INTERMEDIATE, HIDDEN)] * LAYERS
    named = dict(model.named_modules())
    paths = {"distilbert": "transformer.layer.{}.ffn.lin2", "modernbert": "layers.{}.mlp.Wo"}
    path = paths.get(family, "encoder.layer.{}.output.dense")
    assert all(site is named[path.format(layer)] for layer, site in enumerate(found))


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_t5])
def test_unsupported_family_is_refused_by_name_with_the_supported_ones(make: object) -> None:
    assert callable(make)
    model = make()
    with pytest.raises(BackboneError, match=model.config.model_type) as caught:
        sites(model)
    assert caught.value.hint is not None
    assert all(family in caught.value.hint for family in FAMILIES)


@pytest.mark.parametrize("model_type", ["", "ModernBert", "Bert", "bert-generation", "albert"])
def test_family_is_found_by_its_exact_name(model_type: str) -> None:
    with pytest.raises(BackboneError, match=repr(model_type)):
        family_named(model_type)


def test_family_of_a_model_is_that_of_its_configuration() -> None:
    assert family_of(tiny_backbone("distilbert").model) is FAMILIES["distilbert"]


@pytest.mark.parametrize(
    ("family", "wrapper"),
    [
        ("bert", BertForSequenceClassification),
        ("distilbert", DistilBertForSequenceClassification),
        ("roberta", RobertaForMaskedLM),
    ],
)
def test_model_with_a_task_head_is_refused(family: str, wrapper: type[PreTrainedModel]) -> None:
    with pytest.raises(BackboneError, match=wrapper.__name__) as caught:
        sites(wrapper(tiny_backbone(family).model.config))
    assert caught.value.hint is not None
    assert "AutoModel" in caught.value.hint


def test_site_that_is_no_plain_linear_layer_is_refused_and_not_skipped() -> None:
    class Quantised(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = tiny_backbone("bert").model
    model.get_submodule("encoder.layer.1.output").dense = Quantised()
    with pytest.raises(BackboneError, match=r"output\.dense"):
        sites(model)
