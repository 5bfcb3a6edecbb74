"""From a recipe and data to a proved artefact, and to the two baselines it is judged by.

    train_adapter      the adapter: its best epoch exported, scored in float32, with golden examples
    full_fine_tuning   the whole encoder trained on the same data
    linear_probe       a linear head on the frozen encoder's features

Knows nothing of the command line or of model cards.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import set_seed

from adakron.artefact import MAX_EXAMPLES, Adapter, Example
from adakron.backbone import Backbone
from adakron.config import AdaKronConfig, AdapterConfig
from adakron.errors import AdaKronError, ConfigError, DataError
from adakron.heads import LinearHead
from adakron.text import TextOrPair, tokenise
from adakron.training.classifier import (
    Classifier,
    adapter_classifier,
    adapter_tensors,
    forward_texts,
    full_classifier,
    reference_logits,
    start_from,
    to_float32,
)
from adakron.training.data import TaskData
from adakron.training.loop import Outcome, Schedule, fit, texts_of
from adakron.training.metrics import score
from adakron.training.recipe import Recipe

MAX_EXAMPLE_TOKENS = 32
_ADAPTER_ONLY = {
    "name",
    "method",
    "experts",
    "bottleneck",
    "factor",
    "first_layer",
    "start",
    "start_from",
    "lr",
    "layer_decay",
    "epochs",
    "weight_decay",
    "abstain_below",
}
PROBE_STRENGTHS = (0.1, 1.0, 10.0)

DEFAULT_EXAMPLES: tuple[TextOrPair, ...] = (
    "It arrived a day early and works better than I had hoped.",
    "Nobody answered, so I cancelled and asked for my money back.",
    "The meeting moved to Thursday at ten.",
)
DEFAULT_PAIR_EXAMPLES: tuple[TextOrPair, ...] = (
    ("When does the library close?", "The library closes at eight in the evening."),
    ("A child is feeding the ducks.", "Somebody throws bread into the pond."),
    ("The train was late.", "She paints with water colours."),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """scores: on validation, of the exported adapter in float32."""

    adapter: Adapter
    scores: dict[str, float]
    outcome: Outcome
    seconds: float


def train_adapter(recipe: Recipe, data: TaskData, metric: str, examples: Sequence[TextOrPair] | None = None) -> Trained:
    """Train, export the best epoch and score it.

    examples  texts for the golden examples, at most 8 of at most 32 tokens; None: general ones

    Raises DataError for an unfit example, BackboneError, ConfigError, and FormatError if training ended in NaN.
    """
    started = time.monotonic()
    backbone = load_backbone(recipe)
    texts = golden_texts(backbone, data, examples)
    model = new_adapter(backbone, recipe, data)
    outcome = fit(model, backbone, data, recipe, Schedule(recipe.lr, recipe.epochs, recipe.weight_decay), metric)
    fresh = to_float32(load_backbone(recipe))  # training left hooks and bfloat16 weights in the other
    adapter, scores = exported(model, recipe, data, texts, fresh)
    return Trained(adapter, scores, outcome, time.monotonic() - started)


def new_adapter(backbone: Backbone, recipe: Recipe, data: TaskData) -> Classifier:
    """The classifier before its first step, as the seed draws it; its adapters are attached to the backbone.

    Raises ConfigError where `recipe.start_from` is no adapter of the backbone and of the recipe's shape.
    """
    set_seed(recipe.seed)
    model = adapter_classifier(backbone, recipe, len(data.label_names), data.problem_type)
    start_at_mean(model, data)
    if recipe.start_from is not None:
        trained = _adapter_to_start_from(recipe.start_from)
        _require_same_start(trained.config, backbone, recipe)
        start_from(model, trained)
    return model


def _adapter_to_start_from(folder: str) -> Adapter:
    try:
        return Adapter.from_folder(folder)
    except AdaKronError as error:
        raise ConfigError(f"start_from: {folder}: {error}", key="start_from", hint=error.hint) from error


def _require_same_start(found: AdapterConfig, backbone: Backbone, recipe: Recipe) -> None:
    """Raises ConfigError if layers trained under `found` are no start for the recipe's on this backbone."""
    if found.base_fingerprint != backbone.fingerprint:
        raise ConfigError(
            f"start_from: expected an adapter of the backbone {backbone.name}; {recipe.start_from} was trained on "
            f"{found.base_model_name_or_path} with other weights, config or tokenizer",
            key="start_from",
        )
    if found.adakron != recipe.adakron:
        raise ConfigError(
            f"start_from: expected an adapter with {_shape(recipe.adakron)}; {recipe.start_from} has "
            f"{_shape(found.adakron)}",
            key="start_from",
            hint="give this one the same shape, or start from another",
        )


def _shape(config: AdaKronConfig) -> str:
    return (
        f"bottleneck {config.bottleneck}, factor {config.factor}, order {config.order}, "
        f"first layer {config.first_layer}"
    )


def exported(
    model: Classifier, recipe: Recipe, data: TaskData, texts: Sequence[TextOrPair], fresh: Backbone
) -> tuple[Adapter, dict[str, float]]:
    """The artefact with `texts` as golden examples, and its scores on validation, both by the float32 `fresh`."""
    config = adapter_config(recipe, data, fresh)
    tensors = adapter_tensors(model, recipe.first_layer)
    golden = reference_logits(fresh, Adapter.build(config, tensors), texts, batch=1)
    expected = [_example(text, row.tolist()) for text, row in zip(texts, golden, strict=True)]
    adapter = Adapter.build(config, tensors, expected)
    return adapter, scores_on_validation(reference_logits(fresh, adapter, texts_of(data.validation)), data)


def adapter_config(recipe: Recipe, data: TaskData, backbone: Backbone) -> AdapterConfig:
    """What the artefact records."""
    return AdapterConfig(
        adakron=recipe.adakron,
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_hidden_layers,
        base_model_name_or_path=backbone.name,
        base_fingerprint=backbone.fingerprint,
        label_names=data.label_names,
        problem_type=data.problem_type,
        head=recipe.head,
        pooling=recipe.pooling,
        max_length=recipe.max_length,
        text_fields=("text", "text_pair") if data.takes_pair else ("text",),
        revision=backbone.revision,
        label_distribution=data.label_shares(),
    )


def full_fine_tuning(recipe: Recipe, data: TaskData, metric: str, work: Path) -> dict[str, Any]:
    """Scores on validation, in float32, after training everything; read from `work` where the same run is finished."""
    key = _key("full", recipe, data)
    if (finished := _finished(work / "full.json", key)) is not None:
        return finished
    started = time.monotonic()
    backbone = load_backbone(recipe)
    set_seed(recipe.seed)
    model = full_classifier(backbone, recipe, len(data.label_names), data.problem_type)
    start_at_mean(model, data)
    outcome = fit(model, backbone, data, recipe, Schedule(recipe.full_lr, recipe.full_epochs, 0.01), metric)
    logits = forward_texts(model, backbone, texts_of(data.validation), recipe.max_length)
    result = {
        "scores": scores_on_validation(logits, data),
        "lr": recipe.full_lr,
        **asdict(outcome),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - started),
    }
    return _finish(work / "full.json", key, result)


def linear_probe(recipe: Recipe, data: TaskData, metric: str, work: Path) -> dict[str, Any]:
    """Scores on validation of a linear head on pooled, standardised features; read from `work` where finished.

    The best of three regularisation strengths counts, chosen on validation as the epochs of the others are.
    """
    key = _key("probe", recipe, data)
    if (finished := _finished(work / "probe.json", key)) is not None:
        return finished
    backbone = to_float32(load_backbone(recipe))
    train = pooled_features(backbone, recipe, texts_of(data.train))
    validation = pooled_features(backbone, recipe, texts_of(data.validation))
    return _finish(work / "probe.json", key, fit_probe(train, validation, data, metric))


def probe_features(recipe: Recipe, data: TaskData) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of the frozen float32 encoder, [N, D] of the training and [M, D] of the validation rows.

    Both are standardised by the mean and deviation of the training rows.
    """
    backbone = to_float32(load_backbone(recipe))
    return _standardised(
        pooled_features(backbone, recipe, texts_of(data.train)),
        pooled_features(backbone, recipe, texts_of(data.validation)),
    )


def pooled_features(backbone: Backbone, recipe: Recipe, texts: Sequence[TextOrPair]) -> NDArray[np.float32]:
    """What a linear probe sees [N, D]: the pooled last hidden state of the encoder without adapter."""
    width = backbone.hidden_size
    identity = LinearHead(width, width, dropout=0.0)
    identity.load_state_dict({"weight": torch.eye(width), "bias": torch.zeros(width)})
    features = Classifier(
        backbone.model, nn.ModuleList(), identity, backbone.pooler, recipe.pooling, "regression"
    ).eval()
    features.to("cuda" if torch.cuda.is_available() else "cpu")
    return forward_texts(features, backbone, texts, recipe.max_length)


def _standardised(train: NDArray[np.float32], validation: NDArray[np.float32]) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / deviation, (validation - mean) / deviation


def fit_probe(
    train: NDArray[np.float32], validation: NDArray[np.float32], data: TaskData, metric: str
) -> dict[str, Any]:
    """Scores and strength of the best probe on features [N, D] of the task's rows, in their order."""
    train, validation = _standardised(train, validation)
    tried = [
        {"scores": scores_on_validation(probe_logits(train, validation, data, strength), data), "strength": strength}
        for strength in PROBE_STRENGTHS
    ]
    return max(tried, key=lambda result: result["scores"][metric])


def probe_logits(train: np.ndarray, validation: np.ndarray, data: TaskData, strength: float) -> np.ndarray:
    """Logits [M, L] of a linear head on features; the larger `strength`, the less it is regularised."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    targets = np.array([data.target(row) for row in data.train])
    if data.problem_type == "regression":
        ridge = Ridge(alpha=1 / strength).fit(train, targets)
        return np.asarray(ridge.predict(validation))[:, None]
    logistic = LogisticRegression(C=strength * 0.01, max_iter=300, tol=1e-3)
    if data.problem_type == "multi_label_classification":
        chances = OneVsRestClassifier(logistic).fit(train, targets).predict_proba(validation)
        return np.asarray(np.log(chances + 1e-9) - np.log(1 - chances + 1e-9))
    logistic.fit(train, targets)
    decision = np.asarray(logistic.decision_function(validation))
    if decision.ndim == 1:
        decision = np.stack([-decision, decision], axis=1)
    logits = np.full((len(validation), len(data.label_names)), -np.inf)
    logits[:, logistic.classes_] = decision  # a label that no training row carries is never chosen
    return logits


def load_backbone(recipe: Recipe) -> Backbone:
    """The recipe's backbone. Raises ConfigError if the recipe's rows are longer than it takes, BackboneError."""
    backbone = Backbone.load(recipe.backbone)
    if recipe.max_length > backbone.max_length:
        raise ConfigError(
            f"max_length: expected at most {backbone.max_length}, the backbone's; found {recipe.max_length}",
            key="max_length",
        )
    return backbone


def start_at_mean(model: Classifier, data: TaskData) -> None:
    """A value far from 0 would cost the first epoch: start the output at the mean of the training values."""
    if data.problem_type != "regression":
        return
    bias = model.head.bias if isinstance(model.head, LinearHead) else model.head.out_proj.bias
    nn.init.constant_(bias, float(np.mean([data.target(row) for row in data.train])))


def scores_on_validation(logits: np.ndarray, data: TaskData) -> dict[str, float]:
    """Every metric that applies, of logits [M, L] for the validation rows in their order."""
    labels = np.array([data.target(row) for row in data.validation])
    return {name: round(value, 4) for name, value in score(logits, labels, data.problem_type, data.label_names).items()}


def golden_texts(backbone: Backbone, data: TaskData, texts: Sequence[TextOrPair] | None) -> list[TextOrPair]:
    """`texts`, or general ones, if they may become golden examples. Raises DataError where they may not."""
    chosen = list(texts) if texts is not None else list(DEFAULT_PAIR_EXAMPLES if data.takes_pair else DEFAULT_EXAMPLES)
    if not 1 <= len(chosen) <= MAX_EXAMPLES:
        raise DataError(f"examples: expected 1 to {MAX_EXAMPLES}; found {len(chosen)}")
    lengths = tokenise(backbone.tokenizer, chosen, [MAX_EXAMPLE_TOKENS] * len(chosen))
    for text, (_, too_long) in zip(chosen, lengths, strict=True):
        shown = str(text)[:60]
        if isinstance(text, str) == data.takes_pair:
            raise DataError(f"examples: expected {'pairs' if data.takes_pair else 'single texts'}; found {shown!r}")
        if too_long:
            raise DataError(f"examples: expected at most {MAX_EXAMPLE_TOKENS} tokens; found more in {shown!r}")
    return chosen


def _example(text: TextOrPair, logits: Sequence[float]) -> Example:
    first, second = (text, None) if isinstance(text, str) else text
    return Example(first, second, tuple(logits))


def _key(what: str, recipe: Recipe, data: TaskData) -> str:
    """Names a baseline's run: the same key gives the same result."""
    settings = recipe.to_dict()
    if what == "probe":
        settings = {key: settings[key] for key in ("backbone", "pooling", "max_length")}
    else:
        settings = {key: value for key, value in settings.items() if key not in _ADAPTER_ONLY}
    return hashlib.sha256(json.dumps([what, settings, data.digest()], sort_keys=True).encode()).hexdigest()


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept["result"] if isinstance(kept, dict) and kept.get("key") == key else None


def _finish(path: Path, key: str, result: Mapping[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "result": result}, indent=1) + "\n", encoding="utf-8")
    return dict(result)
