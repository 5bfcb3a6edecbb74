"""Encoders of a known architecture with random weights: for measuring speed where no weights can be had.

    random:minilm    random:bert-base    random:roberta-large    random:modernbert-base
    random:tiny, in which next to nothing is computed

Their answers mean nothing: an adapter learns little on them. The weights come from a fixed seed, so that the
fingerprint is the same wherever torch draws the same numbers. Knows shapes and a tokenizer; downloads nothing.
"""

from itertools import product
from string import ascii_lowercase, digits, punctuation
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, ModernBertConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig

from adakron.errors import BackboneError

PREFIX = "random:"
SEED = 7
_VOWELS = frozenset("aeiouy")


def random_encoder(name: str) -> tuple[PreTrainedModel, Tokenizer]:
    """The float32 model and the tokenizer that `name`, with its prefix, stands for; the global seed stays as it was.

    Raises BackboneError for an unknown architecture.
    """
    config = random_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers gives it no types
    return model, _tokenizer(config)


def random_config(name: str) -> PreTrainedConfig:
    """The configuration of that model. Raises BackboneError for an unknown architecture."""
    architecture = name.removeprefix(PREFIX)
    if architecture not in ARCHITECTURES:
        raise BackboneError(
            f"no architecture {architecture!r} to fill with random weights",
            hint=f"known: {', '.join(PREFIX + known for known in ARCHITECTURES)}",
        )
    kind, sizes = ARCHITECTURES[architecture]
    return kind(**sizes)


def _tokenizer(config: PreTrainedConfig) -> Tokenizer:
    """WordPiece over pieces of up to three letters, with filler up to the model's vocabulary.

    A word becomes about 1.6 tokens, and different words different tokens, with no word list to carry.
    """
    roberta = config.model_type == "roberta"
    begin, pad, end, unknown = ("<s>", "<pad>", "</s>", "<unk>") if roberta else ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    special = [begin, pad, end, unknown] if roberta else [pad, unknown, begin, end]
    letters = ["".join(piece) for length in (1, 2, 3) for piece in product(ascii_lowercase, repeat=length)]
    starts = [piece for piece in letters if len(piece) < 3 or _VOWELS & set(piece)]
    plain = [*digits, *punctuation, *starts, *(f"##{piece}" for piece in (*letters, *digits))]
    tokens = [*special, *plain]
    tokens += [f"[unused{number}]" for number in range(config.vocab_size - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = f"{begin} $A {end} {end} $B {end}" if roberta else f"{begin} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=pair,
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    return tokenizer


def _sizes(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }


ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "tiny": (BertConfig, _sizes(2, 64, 4)),
    "minilm": (BertConfig, _sizes(6, 384, 12)),
    "bert-base": (BertConfig, _sizes(12, 768, 12)),
    "roberta-large": (
        RobertaConfig,
        _sizes(24, 1024, 16)
        | {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "modernbert-base": (
        ModernBertConfig,
        _sizes(22, 768, 12)
        | {"intermediate_size": 1152, "vocab_size": 50_368}
        | {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
    ),
}
