"""Every method trains what it says and nothing else, and is counted as the papers count."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, BertConfig, RobertaConfig

from adakron.errors import BackboneError, ConfigError
from adakron.training import bottleneck
from adakron.training.bottleneck import Bottleneck, attach_bottlenecks
from adakron.training.classifier import adapter_classifier
from adakron.training.methods import METHODS, VARIANTS, ParameterCount, method_named
from adakron.training.recipe import Recipe
from tests.tiny import FAMILIES, tiny_backbone

RECIPE = Recipe(name="x", bottleneck=24, max_length=24, dtype="float32", dropout=0.0, encoder_dropout=0.0)
BERT = BertConfig()
LARGE = RobertaConfig(
    vocab_size=50_265,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=514,
    type_vocab_size=1,
)


def counted(name: str, config, **changes) -> ParameterCount:
    """On an encoder without memory for its weights."""
    method = method_named(name)
    recipe = method.recipe(Recipe(name="x", dtype="float32", **changes))
    with torch.device("meta"):
        model = AutoModel.from_config(config)
        backbone = SimpleNamespace(
            model=model, pooler=model.pooler, hidden_size=config.hidden_size, model_type=config.model_type
        )
        return ParameterCount.of(method.build(backbone, recipe, 2, "single_label_classification"))


def test_adakron_is_the_paper_s_to_the_unit() -> None:
    assert counted("adakron", BERT, bottleneck=48) == ParameterCount(599_232, 2 * 769)
    assert counted("adakron", LARGE, bottleneck=16).method == 614_592


@pytest.mark.parametrize(
    ("name", "millions", "exactly"),
    [
        ("pfeiffer", "0.9", 12 * (2 * 768 * 48 + 48 + 768)),
        ("houlsby", "1.8", 24 * (2 * 768 * 48 + 48 + 768)),
        ("lora", "0.3", 12 * 2 * 2 * 768 * 8),
        ("bitfit", "0.1", 102_144),
        ("ia3", "0.1", 12 * (768 + 768 + 768 + 3072)),
        ("probe", "0.0", 0),
    ],
)
def test_the_others_are_counted_the_same_way(name: str, millions: str, exactly: int) -> None:
    found = counted(name, BERT, bottleneck=48)
    assert found == ParameterCount(exactly, 2 * 769)
    assert f"{found.method / 1e6:.1f}" == millions


def test_full_fine_tuning_trains_the_pooler_only_where_the_head_reads_it() -> None:
    pooler = 768 * 769
    assert counted("full", BERT, pooling="pooler").method == 109_482_240
    assert counted("full", BERT, pooling="mean").method == 109_482_240 - pooler
    assert counted("bitfit", BERT, pooling="pooler").method == 102_144 + 768


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_a_step_changes_what_is_trained_and_nothing_else(name: str) -> None:
    backbone = tiny_backbone(layers=4)
    torch.manual_seed(0)
    method = method_named(name)
    model = method.build(backbone, method.recipe(RECIPE), 3, "single_label_classification")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.randint(4, 40, (4, 7))
    model.train()
    for _ in range(2):  # LoRA's first factor has no gradient while the second is zero
        optimizer.zero_grad()
        model(ids, torch.ones_like(ids), labels=torch.tensor([0, 1, 2, 0]))["loss"].backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= trainable
    unused = {"encoder.embeddings.position_embeddings.weight", "encoder.embeddings.token_type_embeddings.weight"}
    assert {key for key in trainable - changed if "key.bias" not in key} <= unused  # softmax ignores a key's bias


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_a_fresh_method_leaves_the_encoder_as_it_was(name: str) -> None:
    ids = torch.randint(4, 40, (2, 7))
    bare = tiny_backbone(layers=4)
    wanted = bare.model(input_ids=ids).last_hidden_state
    backbone = tiny_backbone(layers=4)
    method = method_named(name)
    model = method.build(backbone, method.recipe(RECIPE), 3, "single_label_classification").eval()
    found = model.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)


WITHOUT = {("bitfit", "modernbert")}  # it has no biases


@pytest.mark.parametrize(
    ("name", "family"),
    sorted({*product(["pfeiffer", "houlsby", "lora", "bitfit"], FAMILIES)} - WITHOUT),
)
def test_every_family_can_be_compared(name: str, family: str) -> None:
    backbone = tiny_backbone(family)
    model = method_named(name).build(backbone, RECIPE, 2, "single_label_classification")
    ids = torch.randint(4, 40, (2, 7))
    model(ids, torch.ones_like(ids), labels=torch.tensor([0, 1]))["loss"].backward()
    assert all(p.grad is not None for p in model.adapters.parameters())
    assert ParameterCount.of(model).method > 0


def test_the_bottleneck_is_its_equation() -> None:
    adapter = Bottleneck(6, 3)
    torch.nn.init.normal_(adapter.up.weight)
    x = torch.randn(5, 6)
    down = x @ adapter.down.weight.T + adapter.down.bias
    gelu = down * 0.5 * (1 + torch.erf(down / 2**0.5))
    torch.testing.assert_close(adapter(x), x + gelu @ adapter.up.weight.T + adapter.up.bias)


def test_bottlenecks_sit_before_residual_and_norm() -> None:
    """An adapter that takes everything away leaves each layer with the norm of the residual alone."""
    backbone = tiny_backbone(layers=1)
    adapters = attach_bottlenecks(backbone.model, 4, after_attention=True)
    assert len(adapters) == 2
    layer = backbone.model.encoder.layer[0]
    for adapter in adapters:
        adapter.forward = torch.zeros_like
    for place in (layer.attention.output.dense, layer.output.dense):
        assert not place(torch.randn(2, place.in_features)).any()


def test_an_encoder_without_the_attention_site_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(bottleneck._ATTENTION_SITE, "bert", "attention.nowhere")
    with pytest.raises(BackboneError, match=r"BertModel has no 'attention.nowhere' in its layers"):
        attach_bottlenecks(tiny_backbone().model, 4, after_attention=True)


def test_a_method_that_peft_cannot_place_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="IA3: PEFT does not know where to put it in a distilbert encoder"):
        method_named("ia3").build(tiny_backbone("distilbert"), RECIPE, 2, "single_label_classification")


def test_bitfit_without_biases_is_refused() -> None:
    with pytest.raises(ConfigError, match="bitfit: a modernbert encoder has no biases to train"):
        method_named("bitfit").build(tiny_backbone("modernbert"), RECIPE, 2, "single_label_classification")


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no method 'prompt'") as caught:
        method_named("prompt")
    assert "pfeiffer" in str(caught.value.hint)


@pytest.mark.parametrize("method", ["adakron", "madakron-full"])
def test_the_open_start_is_a_plain_bottleneck_at_first(method: str) -> None:
    backbone = tiny_backbone()
    recipe = replace(RECIPE, method=method, start="open")
    model = adapter_classifier(backbone, recipe, 2, "single_label_classification").eval()
    adapter = model.layer_adapters()[-1].merged()
    torch.nn.init.zeros_(adapter.a2.weight)
    x = torch.randn(3, backbone.hidden_size)
    wanted = x + adapter.up(torch.nn.functional.gelu(adapter.a1(x).repeat(1, 4)))
    torch.testing.assert_close(adapter(x), wanted)
