"""Tiny random backbones of every supported family and adapters for them: small enough for any test, no download.

All sizes differ from each other (and K from Q), so that a swapped axis or factor order cannot pass.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel

from adakron import AdaKronConfig, Adapter, AdapterConfig, Backbone, Example
from adakron.artefact import expected_shapes

WORDS = (
    "the a of and to in is it that was for on are with they be at one have this from by hot word but what some we can "
    "out other were all there when up use your how said an each she which do their time if will way about many then "
    "them write would like so these her long make thing see him two has look more day could go come did number sound "
    "no most people my over know water than call first who may down side been now find any new work part take get "
    "place made live where after back little only round man year came show every good me give our under very"
).split()
HIDDEN = 20
LAYERS = 3
MAX_POSITIONS = 44

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "modernbert")
PAIR_FAMILIES = tuple(family for family in FAMILIES if family != "distilbert")


def tiny_tokenizer(family: str = "bert") -> Tokenizer:
    """A word-level tokenizer with the special tokens and pair template of its family."""
    if family in ("roberta", "xlm-roberta"):
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        begin, end, unknown = "<s>", "</s>", "<unk>"
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        begin, end, unknown = "[CLS]", "[SEP]", "[UNK]"
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    return tokenizer


def tiny_backbone(family: str = "bert", *, hidden: int = HIDDEN, layers: int = LAYERS, seed: int = 1) -> Backbone:
    """A random encoder of `family` with weights large enough that every part of it matters."""
    tokenizer = tiny_tokenizer(family)
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": MAX_POSITIONS}
    if family == "distilbert":
        sizes |= {"dim": hidden, "n_layers": layers, "n_heads": 4, "hidden_dim": 28}
    else:
        sizes |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 28,
        }
    if family == "electra":
        sizes["embedding_size"] = 12
    if family == "deberta-v2":
        sizes |= {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        }
    if family == "modernbert":
        # A full layer, two local ones, and most texts longer than their window of 4 to each side.
        sizes |= {"local_attention": 8, "global_attn_every_n_layers": 3}
        sizes["num_attention_heads"] = 2  # rotary features come in pairs
        sizes |= {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    if family in ("roberta", "xlm-roberta"):
        sizes |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    torch.manual_seed(seed)
    model = AutoModel.from_config(CONFIG_MAPPING[family](**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return Backbone.from_model(model, tokenizer, f"tiny-{family}")


def tiny_config(backbone: Backbone, labels: Sequence[str] = ("no", "yes"), **changes: Any) -> AdapterConfig:
    """An adapter configuration for `backbone`: r = 12, k = 4, so q = 3; `changes` go to AdapterConfig."""
    method = changes.pop("adakron", AdaKronConfig(bottleneck=12, factor=4))
    return AdapterConfig(
        adakron=method,
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_hidden_layers,
        base_model_name_or_path=backbone.name,
        base_fingerprint=backbone.fingerprint,
        label_names=tuple(labels),
        max_length=changes.pop("max_length", 32),
        **changes,
    )


def tiny_adapter(
    backbone: Backbone,
    labels: Sequence[str] = ("no", "yes"),
    *,
    seed: int = 0,
    scale: float = 0.4,
    expected: Sequence[Example] = (),
    **changes: Any,
) -> Adapter:
    """A random adapter whose every tensor matters: all weights and biases ~ N(0, scale)."""
    config = tiny_config(backbone, labels, **changes)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: scale * torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}
    return Adapter.build(config, tensors, expected)


def safetensors_file(header: Mapping[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """A safetensors container written by hand, so that it can be wrong: header as an object, as text or as bytes."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return len(header).to_bytes(8, "little") + header + data
