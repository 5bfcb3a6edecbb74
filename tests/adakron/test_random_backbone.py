import pytest
import torch
from transformers import AutoModel

from adakron import Backbone
from adakron.errors import BackboneError
from adakron.random_backbone import ARCHITECTURES, random_encoder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("random:minilm")


def test_the_name_is_recorded(backbone: Backbone) -> None:
    assert (backbone.name, backbone.revision) == ("random:minilm", None)
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.max_length) == (384, 6, 512)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("minilm", 22_713_216),
        ("bert-base", 109_482_240),
        ("roberta-large", 355_359_744),
        ("modernbert-base", 149_014_272),
    ],
)
def test_architectures_have_the_size_of_the_published_ones(name: str, parameters: int) -> None:
    kind, sizes = ARCHITECTURES[name]
    with torch.device("meta"):
        model = AutoModel.from_config(kind(**sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_weights_are_the_same_every_time(backbone: Backbone) -> None:
    torch.manual_seed(99)
    assert Backbone.load("random:minilm").fingerprint == backbone.fingerprint


def test_the_global_seed_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_encoder("random:minilm")
    assert torch.equal(torch.rand(3), expected)


def test_the_tokenizer_has_the_vocabulary_of_the_model(backbone: Backbone) -> None:
    assert backbone.tokenizer.get_vocab_size() == backbone.model.config.vocab_size


def test_any_ascii_text_has_tokens_of_its_own(backbone: Backbone) -> None:
    tokenizer = backbone.tokenizer
    first, second = (tokenizer.encode(text) for text in ("Delivered 3 days late!", "Delivered 3 days early?"))
    assert first.ids != second.ids
    assert "[UNK]" not in first.tokens + second.tokens
    assert (first.tokens[0], first.tokens[-1]) == ("[CLS]", "[SEP]")


def test_the_second_of_a_pair_has_type_one(backbone: Backbone) -> None:
    assert backbone.tokenizer.encode("a", "b").type_ids == [0, 0, 0, 1, 1]


def test_roberta_pads_with_the_id_of_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, sizes = ARCHITECTURES["roberta-large"]
    small = sizes | {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(ARCHITECTURES, "roberta-small", (kind, small))
    model, tokenizer = random_encoder("random:roberta-small")
    assert tokenizer.id_to_token(model.config.pad_token_id) == "<pad>"
    assert tokenizer.encode("a", "b").tokens == ["<s>", "a", "</s>", "</s>", "b", "</s>"]


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackboneError, match="gpt") as refusal:
        Backbone.load("random:gpt")
    assert refusal.value.hint is not None
    assert "random:bert-base" in refusal.value.hint
