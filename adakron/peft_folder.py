"""An adapter as a folder that is laid out as PEFT lays out its own, and back, to the byte.

    adapter_config.json          the artefact's, with PEFT's target_modules
    adapter_model.safetensors    base_model.model.{root}.{layers}.N.{site}.adakron_{a1, a2, up}.{weight, bias} and
                                 base_model.model.classifier.*
    expected.json                the golden examples

Names are those of the module that an adapter sits on, in a model with a task head, as PEFT's LoRA has them: whoever
knows such folders finds each tensor. PEFT itself has no method ADAKRON and loads none of these. Knows files and names;
nothing of weights' meaning.
"""

import json
import re
from pathlib import Path

from safetensors.torch import load, save

from adakron.artefact import (
    CONFIG_FILE,
    EXPECTED_FILE,
    MAX_FILE_BYTES,
    WEIGHTS_FILE,
    Adapter,
    expected_json,
    expected_shapes,
    parse_expected,
    read_regular,
)
from adakron.config import AdapterConfig
from adakron.errors import ConfigError, FormatError, UnexpectedTensorError
from adakron.families import FAMILIES, Family, family_named
from adakron.header import read_header
from adakron.strict_json import parse_json_object

PREFIX = "base_model.model."
_HEAD = f"{PREFIX}classifier."


def write_peft_folder(adapter: Adapter, model_type: str, folder: str | Path) -> None:
    """Write the folder; model_type is that of the adapter's backbone. Raises BackboneError for an unsupported one."""
    family, target = family_named(model_type), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config = adapter.config.to_dict() | {"target_modules": target_modules(family, adapter.config)}
    tensors = {_peft_name(name, family): tensor.contiguous() for name, tensor in adapter.tensors.items()}
    (target / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    (target / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if adapter.expected:
        (target / EXPECTED_FILE).write_text(expected_json(adapter.expected) + "\n", encoding="utf-8")
    else:
        (target / EXPECTED_FILE).unlink(missing_ok=True)  # of the adapter that was here before


def is_peft_folder(folder: str | Path) -> bool:
    """Whether a folder's configuration has what PEFT's have and an artefact's has not."""
    try:
        return "target_modules" in parse_json_object(read_regular(Path(folder) / CONFIG_FILE, 1 << 20), CONFIG_FILE)
    except (FormatError, ConfigError):
        return False


def read_peft_folder(folder: str | Path) -> Adapter:
    """The artefact that `write_peft_folder` wrote: the same tensors, examples and configuration.

    Raises ConfigError naming the key, FormatError with the tensor.
    """
    place = Path(folder)
    raw = parse_json_object(read_regular(place / CONFIG_FILE, 1 << 20), CONFIG_FILE)
    modules = raw.pop("target_modules", None)
    config = AdapterConfig.from_dict(raw)
    data = read_regular(place / WEIGHTS_FILE, MAX_FILE_BYTES)
    read_header(data)
    family = next((family for family in FAMILIES.values() if target_modules(family, config) == modules), None)
    if family is None:
        raise ConfigError(f"target_modules: no supported family has {str(modules)[:120]!r}", key="target_modules")
    ours = {_peft_name(name, family): name for name in expected_shapes(config)}
    tensors = load(data)
    for name in sorted(set(tensors) - set(ours)):
        raise UnexpectedTensorError(
            f"{name[:120]}: not a tensor of this configuration", tensor=name[:120], expected="nothing", found=name[:120]
        )
    renamed = {ours[name]: tensor for name, tensor in tensors.items()}
    beside = place / EXPECTED_FILE
    expected = parse_expected(read_regular(beside, 1 << 20), config) if beside.exists() else ()
    return Adapter.build(config, renamed, expected)


def target_modules(family: Family, config: AdapterConfig) -> str:
    """A regular expression for the whole names of the modules with an adapter: PEFT's other form of target_modules."""
    layers = "|".join(str(layer) for layer in range(config.first_layer, config.num_hidden_layers))
    return rf".*\b{re.escape(family.root)}\.{re.escape(family.layers)}\.({layers})\.{re.escape(family.site)}"


def _peft_name(name: str, family: Family) -> str:
    if name.startswith("head."):
        return _HEAD + name.removeprefix("head.")
    _, layer, part, kind = name.split(".")
    return f"{PREFIX}{family.root}.{family.layers}.{layer}.{family.site}.adakron_{part}.{kind}"
