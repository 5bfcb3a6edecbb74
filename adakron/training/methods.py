"""Ways to fine-tune one encoder, under one roof: each makes a `Classifier` in which its own parameters are trainable.

AdaKron and MAdaKron, plain bottlenecks, LoRA and (IA)^3 by PEFT, BitFit, a linear probe, and full fine-tuning. For
comparison in training; only AdaKron is served. Knows modules; nothing of data, epochs or files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from adakron.backbone import Backbone
from adakron.config import ProblemType
from adakron.errors import ConfigError
from adakron.training.bottleneck import attach_bottlenecks
from adakron.training.classifier import Classifier, adapter_classifier, full_classifier, tuned_classifier
from adakron.training.recipe import Recipe

Build = Callable[[Backbone, Recipe, int, ProblemType], Classifier]

LORA_RANK = 8
LORA_ALPHA = 16
_LORA_TARGETS = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune.

    build    puts it on a fresh backbone; arguments as `adapter_classifier` takes them
    rate     learning rate at which it is tried first, for an encoder of MiniLM's size
    changes  fields of the recipe that it sets
    teacher  the method that is trained before it, and whose logits it learns from beside the labels
    first    by task, the task on which it is trained before, with whose weights, the head's apart, it begins
    plain    the method that it is on a task that `first` does not name
    """

    name: str
    title: str
    build: Build
    rate: float
    changes: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    first: Mapping[str, str] = field(default_factory=dict)
    plain: str | None = None

    def recipe(self, base: Recipe) -> Recipe:
        """`base` as this method trains."""
        return replace(base, **self.changes)


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable parameters: those of the method and those of the head that every method has."""

    method: int
    head: int

    @classmethod
    def of(cls, model: Classifier) -> "ParameterCount":
        head = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
        return cls(sum(p.numel() for p in model.parameters() if p.requires_grad) - head, head)


def _pfeiffer(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    adapters = attach_bottlenecks(backbone.model, recipe.bottleneck)
    return tuned_classifier(backbone, recipe, num_labels, problem_type, adapters)


def _houlsby(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    adapters = attach_bottlenecks(backbone.model, recipe.bottleneck, after_attention=True)
    return tuned_classifier(backbone, recipe, num_labels, problem_type, adapters)


def _lora(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    """Rank 8 on queries and values, as PEFT has it by default; ModernBERT's are one matrix with the keys."""
    from peft import LoraConfig

    targets = _LORA_TARGETS.get(backbone.model_type)
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=targets)
    return _injected(config, backbone, recipe, num_labels, problem_type)


def _ia3(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    """Vectors where PEFT puts them: on keys, on values, and on the input of both output projections of a layer."""
    from peft import IA3Config

    return _injected(IA3Config(), backbone, recipe, num_labels, problem_type)


def _injected(
    config: Any, backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType
) -> Classifier:
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(config, backbone.model)
    except ValueError as error:
        kind = config.peft_type.value
        raise ConfigError(
            f"{kind}: PEFT does not know where to put it in a {backbone.model_type} encoder",
            key="methods",
            hint="leave this method out, or name another backbone",
        ) from error
    return tuned_classifier(backbone, recipe, num_labels, problem_type, nn.ModuleList())


def _bitfit(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    """Every bias of the encoder, those of its LayerNorms too; of the pooler only where the head reads it."""
    backbone.model.requires_grad_(False)
    biases = [
        parameter
        for name, parameter in backbone.model.named_parameters()
        if name.endswith("bias") and (recipe.pooling == "pooler" or not name.startswith("pooler."))
    ]
    if not biases:
        raise ConfigError(
            f"bitfit: a {backbone.model_type} encoder has no biases to train",
            key="methods",
            hint="leave this method out, or name another backbone",
        )
    for bias in biases:
        bias.requires_grad_(True)
    return tuned_classifier(backbone, recipe, num_labels, problem_type, nn.ModuleList())


def _probe(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    backbone.model.requires_grad_(False)
    return tuned_classifier(backbone, recipe, num_labels, problem_type, nn.ModuleList())


_ADAKRON_RATE = 2e-3
_ALL = (
    Method("adakron", "AdaKron r{bottleneck}", adapter_classifier, _ADAKRON_RATE),
    Method(
        "madakron-full",
        "MAdaKron, full",
        adapter_classifier,
        _ADAKRON_RATE,
        changes={"method": "madakron-full"},
    ),
    Method(
        "madakron-partial",
        "MAdaKron, partial",
        adapter_classifier,
        _ADAKRON_RATE,
        changes={"method": "madakron-partial"},
    ),
    Method("pfeiffer", "Pfeiffer r{bottleneck}", _pfeiffer, 2e-3),
    Method("houlsby", "Houlsby r{bottleneck}", _houlsby, 2e-3),
    Method("lora", "LoRA r8", _lora, 2e-3),
    Method("ia3", "(IA)^3", _ia3, 1e-2),
    Method("bitfit", "BitFit", _bitfit, 2e-3),
    Method("probe", "linear probe", _probe, 1.0),
    Method("full", "full fine-tuning", full_classifier, 1e-4),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""By name, in the order of the tables. The rate of `probe` is the strength of `probe_logits`, which replaces it."""

_OPEN = {"start": "open"}
_LAYERED = _OPEN | {"layer_decay": 0.7}
_FROM_MNLI = dict.fromkeys(("rte", "mrpc", "stsb"), "mnli")
"""The tasks that Liu et al., "RoBERTa", 2019, section 5.1, start from MNLI; after Phang et al., "STILTs", 2018."""
_TRIED = (
    Method("adakron-open", "AdaKron r{bottleneck}, open start", adapter_classifier, _ADAKRON_RATE, changes=_OPEN),
    Method(
        "adakron-layered",
        "AdaKron r{bottleneck}, open start, rates by layer",
        adapter_classifier,
        3e-3,
        changes=_LAYERED,
    ),
    Method(
        "adakron-mnli",
        "AdaKron r{bottleneck}, open start, rates by layer, from MNLI",
        adapter_classifier,
        3e-3,
        changes=_LAYERED,
        first=_FROM_MNLI,
        plain="adakron-layered",
    ),
    Method("pfeiffer-mnli", "Pfeiffer r{bottleneck}, from MNLI", _pfeiffer, 2e-3, first=_FROM_MNLI, plain="pfeiffer"),
    Method("full-mnli", "full fine-tuning, from MNLI", full_classifier, 1e-4, first=_FROM_MNLI, plain="full"),
    Method(
        "adakron-wide",
        "AdaKron r{bottleneck}, open start",
        adapter_classifier,
        _ADAKRON_RATE,
        changes=_OPEN | {"bottleneck": 192},
    ),
    Method(
        "adakron-distilled",
        "AdaKron r{bottleneck}, open start, distilled",
        adapter_classifier,
        _ADAKRON_RATE,
        changes=_OPEN | {"bottleneck": 192},
        teacher="full",
    ),
    Method("adakron-k8", "AdaKron r{bottleneck}, k = 8", adapter_classifier, _ADAKRON_RATE, changes={"factor": 8}),
    Method("adakron-k12", "AdaKron r{bottleneck}, k = 12", adapter_classifier, _ADAKRON_RATE, changes={"factor": 12}),
    Method("adakron-r16", "AdaKron r16", adapter_classifier, _ADAKRON_RATE, changes={"bottleneck": 16}),
    Method("adakron-r96", "AdaKron r96", adapter_classifier, _ADAKRON_RATE, changes={"bottleneck": 96}),
    Method(
        "adakron-top4",
        "AdaKron r{bottleneck}, from layer 2",
        adapter_classifier,
        _ADAKRON_RATE,
        changes={"first_layer": 2},
    ),
)
VARIANTS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _TRIED})
"""Changes to the methods that the paper does not have, by name."""


def method_named(name: str) -> Method:
    """Raises ConfigError with the known names."""
    known = {**METHODS, **VARIANTS}
    if name not in known:
        raise ConfigError(f"methods: no method {name!r}", key="methods", hint=f"known: {', '.join(known)}")
    return known[name]
