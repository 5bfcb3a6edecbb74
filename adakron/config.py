"""What an adapter is, as data: its shape (`AdaKronConfig`) and everything its artefact records (`AdapterConfig`).

Frozen dataclasses that validate themselves; strict JSON in and out. Knows nothing of tensors, files or HTTP.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from adakron.errors import ConfigError
from adakron.strict_json import (
    exact_keys,
    is_int,
    is_text,
    number,
    numbers,
    parse_json_object,
    require,
    strings,
    sub_object,
)

FORMAT_VERSION = 1

Method = Literal["adakron", "madakron-partial", "madakron-full"]
Order = Literal["a2_a1", "a1_a2"]
Head = Literal["linear", "roberta"]
Pooling = Literal["cls", "mean", "pooler"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

MAX_LABELS = 10_000
MAX_LABEL_CHARS = 256
MAX_BOTTLENECK = 4096
MAX_LAYERS = 256
MAX_HIDDEN = 65_536
MAX_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class AdaKronConfig:
    """Shape of one AdaKron adapter, the same in every layer.

    bottleneck   r, the width of z; r % factor == 0
    factor       k, the rows of A2; A1 has r / k rows
    order        "a2_a1": element (i, j) of u = A2 x, v = A1 x lands at i * (r / k) + j; "a1_a2": at j * k + i
    first_layer  layers below it carry no adapter (AdapterDrop)

    Raises ConfigError naming the key.
    """

    bottleneck: int = 48
    factor: int = 4
    order: Order = "a2_a1"
    first_layer: int = 0

    def __post_init__(self) -> None:
        require(is_int(self.factor) and self.factor >= 1, "factor", "an integer >= 1", self.factor)
        require(
            is_int(self.bottleneck) and 1 <= self.bottleneck <= MAX_BOTTLENECK,
            "bottleneck",
            f"an integer from 1 to {MAX_BOTTLENECK}",
            self.bottleneck,
        )
        require(
            self.bottleneck % self.factor == 0, "bottleneck", f"a multiple of factor {self.factor}", self.bottleneck
        )
        require(self.order in get_args(Order), "order", '"a2_a1" or "a1_a2"', self.order)
        require(
            is_int(self.first_layer) and 0 <= self.first_layer < MAX_LAYERS,
            "first_layer",
            "a layer index >= 0",
            self.first_layer,
        )

    @property
    def quotient(self) -> int:
        """q = r / k, the rows of A1."""
        return self.bottleneck // self.factor

    def parameters_per_layer(self, hidden_size: int) -> int:
        """q(d+1) + k(d+1) + d(r+1): A1, A2 and the up-projection with their biases."""
        return (self.quotient + self.factor) * (hidden_size + 1) + hidden_size * (self.bottleneck + 1)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which backbone: three sha256, 64 hex digits each (see `adakron.backbone.fingerprint`)."""

    config_sha256: str
    weights_sha256: str
    tokenizer_sha256: str

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            hexadecimal = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
            require(hexadecimal, f"base_fingerprint.{item.name}", "64 lower-case hex digits", value)


@dataclass(frozen=True, slots=True)
class Calibration:
    """temperature divides the logits before softmax or sigmoid; below threshold, the label is withheld (None)."""

    temperature: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        finite = isinstance(self.temperature, float) and math.isfinite(self.temperature)
        require(
            finite and 1e-3 <= self.temperature <= 1e3, "calibration.temperature", "0.001 to 1000", self.temperature
        )
        known = self.threshold is None or (isinstance(self.threshold, float) and 0 < self.threshold < 1)
        require(known, "calibration.threshold", "null or a number between 0 and 1", self.threshold)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Everything an artefact records about one adapter: method, shape, base, head, labels.

    label_names          in index order; for regression one name for the value
    label_distribution   share of each label in the training data, or None: the reference for drift
    max_length           tokens a row may have, special tokens counted; longer rows are truncated
    text_fields          ("text",) or ("text", "text_pair")

    Raises ConfigError naming the key.
    """

    adakron: AdaKronConfig
    hidden_size: int
    num_hidden_layers: int
    base_model_name_or_path: str
    base_fingerprint: Fingerprint
    label_names: tuple[str, ...]
    problem_type: ProblemType = "single_label_classification"
    head: Head = "linear"
    pooling: Pooling = "cls"
    max_length: int = 128
    text_fields: tuple[str, ...] = ("text",)
    revision: str | None = None
    multi_label_threshold: float = 0.5
    label_distribution: tuple[float, ...] | None = None
    calibration: Calibration = field(default_factory=Calibration)
    adakron_version: str = "0.1.0"

    def __post_init__(self) -> None:
        require(
            is_int(self.hidden_size) and 1 <= self.hidden_size <= MAX_HIDDEN,
            "hidden_size",
            "1 to 65536",
            self.hidden_size,
        )
        require(
            is_int(self.num_hidden_layers) and 1 <= self.num_hidden_layers <= MAX_LAYERS,
            "num_hidden_layers",
            f"an integer from 1 to {MAX_LAYERS}",
            self.num_hidden_layers,
        )
        require(
            self.adakron.first_layer < self.num_hidden_layers,
            "first_layer",
            f"less than num_hidden_layers {self.num_hidden_layers}",
            self.adakron.first_layer,
        )
        require(
            is_text(self.base_model_name_or_path, 512),
            "base_model_name_or_path",
            "a name",
            self.base_model_name_or_path,
        )
        require(self.revision is None or is_text(self.revision, 128), "revision", "null or a commit", self.revision)
        require(
            self.problem_type in get_args(ProblemType),
            "problem_type",
            f"one of {get_args(ProblemType)}",
            self.problem_type,
        )
        require(self.head in get_args(Head), "head", f"one of {get_args(Head)}", self.head)
        require(self.pooling in get_args(Pooling), "pooling", f"one of {get_args(Pooling)}", self.pooling)
        require(
            is_int(self.max_length) and 4 <= self.max_length <= MAX_TOKENS,
            "max_length",
            f"4 to {MAX_TOKENS}",
            self.max_length,
        )
        require(
            self.text_fields in (("text",), ("text", "text_pair")),
            "text_fields",
            '["text"] or ["text", "text_pair"]',
            self.text_fields,
        )
        threshold = self.multi_label_threshold
        require(
            isinstance(threshold, float) and 0 < threshold < 1,
            "multi_label_threshold",
            "a number between 0 and 1",
            threshold,
        )
        require(is_text(self.adakron_version, 64), "adakron_version", "a version", self.adakron_version)
        self._check_labels()

    def _check_labels(self) -> None:
        names = self.label_names
        require(isinstance(names, tuple), "label_names", "a tuple of labels in index order", names)
        require(1 <= len(names) <= MAX_LABELS, "id2label", f"1 to {MAX_LABELS} labels", len(names))
        for name in names:
            require(
                is_text(name, MAX_LABEL_CHARS),
                "id2label",
                f"printable labels of 1 to {MAX_LABEL_CHARS} characters",
                name,
            )
        require(len(set(names)) == len(names), "id2label", "labels without repetition", names)
        if self.problem_type == "regression":
            require(len(names) == 1, "num_labels", "1 for regression", len(names))
        if self.problem_type == "single_label_classification":
            require(len(names) >= 2, "num_labels", "at least 2 for single_label_classification", len(names))
        shares = self.label_distribution
        if shares is not None:
            fits = isinstance(shares, tuple) and len(shares) == len(names)
            valid = fits and all(isinstance(s, float) and 0 <= s <= 1 for s in shares)
            require(valid, "label_distribution", f"null or {len(names)} shares from 0 to 1", shares)

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def takes_pair(self) -> bool:
        return len(self.text_fields) == 2

    @property
    def bottleneck(self) -> int:
        return self.adakron.bottleneck

    @property
    def factor(self) -> int:
        return self.adakron.factor

    @property
    def order(self) -> Order:
        return self.adakron.order

    @property
    def first_layer(self) -> int:
        return self.adakron.first_layer

    def to_dict(self) -> dict[str, Any]:
        """The content of adapter_config.json."""
        return {
            "peft_type": "ADAKRON",
            "task_type": "SEQ_CLS",
            "inference_mode": True,
            "modules_to_save": ["classifier"],
            "format_version": FORMAT_VERSION,
            "adakron_version": self.adakron_version,
            "base_model_name_or_path": self.base_model_name_or_path,
            "revision": self.revision,
            "base_fingerprint": {item.name: getattr(self.base_fingerprint, item.name) for item in fields(Fingerprint)},
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "bottleneck": self.bottleneck,
            "factor": self.factor,
            "order": self.order,
            "activation": "gelu",
            "first_layer": self.first_layer,
            "head": self.head,
            "pooling": self.pooling,
            "problem_type": self.problem_type,
            "num_labels": self.num_labels,
            "id2label": {str(index): name for index, name in enumerate(self.label_names)},
            "label2id": {name: index for index, name in enumerate(self.label_names)},
            "max_length": self.max_length,
            "text_fields": list(self.text_fields),
            "multi_label_threshold": self.multi_label_threshold,
            "label_distribution": None if self.label_distribution is None else list(self.label_distribution),
            "calibration": {"temperature": self.calibration.temperature, "threshold": self.calibration.threshold},
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "AdapterConfig":
        """Parse adapter_config.json. Raises ConfigError; see `from_dict`."""
        return cls.from_dict(parse_json_object(text, "adapter_config"))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "AdapterConfig":
        """Every key of the format must be there, and no other; types are exact, never converted.

        Raises ConfigError naming the key, for an unknown, missing or contradicting one, and for a newer format.
        """
        version = raw.get("format_version")
        if is_int(version) and version != FORMAT_VERSION:
            raise ConfigError(
                f"format_version: this release reads version {FORMAT_VERSION}; found {version}",
                key="format_version",
                hint="upgrade adakron to read this adapter",
            )
        exact_keys(raw, _KEYS, "")
        for key, expected in _CONSTANTS.items():
            require(raw[key] == expected and type(raw[key]) is type(expected), key, repr(expected), raw[key])
        base = sub_object(raw, "base_fingerprint", [item.name for item in fields(Fingerprint)])
        calibration = sub_object(raw, "calibration", ["temperature", "threshold"])
        labels = _labels(raw)
        shares = raw["label_distribution"]
        return cls(
            adakron=AdaKronConfig(raw["bottleneck"], raw["factor"], raw["order"], raw["first_layer"]),
            hidden_size=raw["hidden_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            base_model_name_or_path=raw["base_model_name_or_path"],
            base_fingerprint=Fingerprint(**base),
            label_names=labels,
            problem_type=raw["problem_type"],
            head=raw["head"],
            pooling=raw["pooling"],
            max_length=raw["max_length"],
            text_fields=tuple(strings(raw["text_fields"], "text_fields")),
            revision=raw["revision"],
            multi_label_threshold=number(raw["multi_label_threshold"], "multi_label_threshold"),
            label_distribution=None if shares is None else tuple(numbers(shares, "label_distribution")),
            calibration=Calibration(
                number(calibration["temperature"], "calibration.temperature"),
                None if calibration["threshold"] is None else number(calibration["threshold"], "calibration.threshold"),
            ),
            adakron_version=raw["adakron_version"],
        )


_CONSTANTS: dict[str, object] = {
    "peft_type": "ADAKRON",
    "task_type": "SEQ_CLS",
    "inference_mode": True,
    "modules_to_save": ["classifier"],
    "format_version": FORMAT_VERSION,
    "activation": "gelu",
}
_KEYS = (
    *_CONSTANTS,
    "adakron_version",
    "base_model_name_or_path",
    "revision",
    "base_fingerprint",
    "hidden_size",
    "num_hidden_layers",
    "bottleneck",
    "factor",
    "order",
    "first_layer",
    "head",
    "pooling",
    "problem_type",
    "num_labels",
    "id2label",
    "label2id",
    "max_length",
    "text_fields",
    "multi_label_threshold",
    "label_distribution",
    "calibration",
)


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    by_id, by_name, count = raw["id2label"], raw["label2id"], raw["num_labels"]
    require(is_int(count) and 1 <= count <= MAX_LABELS, "num_labels", f"1 to {MAX_LABELS}", count)
    require(isinstance(by_id, dict) and len(by_id) == count, "id2label", f"{count} labels, as num_labels says", by_id)
    wanted = [str(index) for index in range(count)]
    require(set(by_id) == set(wanted), "id2label", f'the keys "0" to "{count - 1}"', sorted(by_id)[:3])
    names = strings([by_id[index] for index in wanted], "id2label")
    inverse = {name: index for index, name in enumerate(names)}
    consistent = isinstance(by_name, dict) and by_name == inverse and all(is_int(v) for v in by_name.values())
    require(consistent, "label2id", "the inverse of id2label", by_name)
    return tuple(names)
