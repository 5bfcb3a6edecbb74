"""Everything that decides the outcome of a training run, as one frozen value that JSON can carry.

Knows nothing of data, models or files: `training_args.json` stores it, `--like` brings it back.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from adakron.config import AdaKronConfig, Head, Method, Pooling, ProblemType
from adakron.errors import ConfigError
from adakron.training.metrics import METRICS

Schedule = Literal["cosine", "linear"]
Start = Literal["paper", "open"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run, apart from its data.

    name           of the adapter; the cards and commands use it
    start          "paper": u (x) v begins as the product of two small numbers, which is slow to learn from few steps;
                   "open": b2 begins at 1, so that u (x) v is v, k times over, and the adapter a plain bottleneck of
                   width r / k, which learns from its first step. Shape and artefact are the same
    start_from     folder of a trained adapter whose layers it begins with instead, as a task with few rows learns much
                   from one like it with many; the head is new all the same
    train_splits   the splits whose rows are trained on, in this order
    problem_type   None: told by the labels (a list: multi-label; a fraction: regression; else single-label)
    metric         what the best epoch is chosen by; None: the default of the problem type
    patience       epochs without a better score after which training stops
    layer_decay    learning rate of a layer's adapter as a share of the next higher one's; the highest one's is lr
    warmup         share of all steps in which the learning rate rises
    max_length     tokens a row may have, special tokens counted
    max_rows       of the training rows, a random choice by seed; None: all
    dropout        before the head; encoder_dropout: inside the encoder, attention included, where 0 halves the time
                   on a CPU and costs accuracy on small data
    evaluations    in an epoch; the best of all is kept
    dtype          of the matrix products (autocast); weights being trained stay float32
    abstain_below  the score below which the adapter gives no label; None: it always gives one
    full_lr        learning rate of the full fine-tuning that `--baselines` compares with
    full_epochs    its epochs

    Raises ConfigError naming the key.
    """

    name: str
    backbone: str = "default"
    method: Method = "adakron"
    experts: int = 4
    bottleneck: int = 48
    factor: int = 4
    first_layer: int = 0
    start: Start = "paper"
    start_from: str | None = None
    head: Head = "linear"
    pooling: Pooling = "mean"
    max_length: int = 128
    problem_type: ProblemType | None = None
    metric: str | None = None
    train_splits: tuple[str, ...] = ("train",)
    max_rows: int | None = None
    lr: float = 1e-3
    layer_decay: float = 1.0
    schedule: Schedule = "cosine"
    warmup: float = 0.06
    weight_decay: float = 0.01
    dropout: float = 0.1
    encoder_dropout: float = 0.1
    label_smoothing: float = 0.0
    epochs: int = 5
    evaluations: int = 1
    batch: int = 32
    patience: int = 3
    seed: int = 13
    dtype: Precision = "bfloat16"
    abstain_below: float | None = None
    full_lr: float = 1e-4
    full_epochs: int = 3

    def __post_init__(self) -> None:
        _require(bool(self.name) and self.name.isprintable(), "name", "a printable name", self.name)
        for key, kind in (
            ("method", Method),
            ("head", Head),
            ("pooling", Pooling),
            ("schedule", Schedule),
            ("start", Start),
            ("dtype", Precision),
        ):
            _require(getattr(self, key) in get_args(kind), key, f"one of {get_args(kind)}", getattr(self, key))
        problem = self.problem_type
        _require(
            problem is None or problem in get_args(ProblemType),
            "problem_type",
            f"one of {get_args(ProblemType)}",
            problem,
        )
        _require(self.metric is None or self.metric in METRICS, "metric", f"one of {tuple(METRICS)}", self.metric)
        _require(
            self.start_from is None or self.method == "adakron",
            "method",
            "adakron, as a trained adapter has no experts to start from",
            self.method,
        )
        for key, least in (
            ("experts", 2),
            ("epochs", 1),
            ("evaluations", 1),
            ("batch", 1),
            ("patience", 1),
            ("full_epochs", 1),
            ("max_length", 4),
        ):
            value = getattr(self, key)
            _require(type(value) is int and value >= least, key, f"an integer >= {least}", value)
        _require(self.max_rows is None or self.max_rows >= 2, "max_rows", "at least 2", self.max_rows)
        for key in ("lr", "full_lr"):
            _require(0 < getattr(self, key) < 1, key, "a number between 0 and 1", getattr(self, key))
        _require(0 < self.layer_decay <= 1, "layer_decay", "a number above 0, at most 1", self.layer_decay)
        for key in ("warmup", "weight_decay", "dropout", "encoder_dropout", "label_smoothing"):
            _require(0 <= getattr(self, key) < 1, key, "a number from 0 to below 1", getattr(self, key))
        abstain = self.abstain_below
        _require(abstain is None or 0 < abstain < 1, "abstain_below", "a number between 0 and 1", abstain)
        _require(bool(self.train_splits), "train_splits", "at least one split", self.train_splits)
        AdaKronConfig(self.bottleneck, self.factor, first_layer=self.first_layer)

    @property
    def adakron(self) -> AdaKronConfig:
        return AdaKronConfig(self.bottleneck, self.factor, first_layer=self.first_layer)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self) | {"train_splits": list(self.train_splits)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_dict`; absent keys take their defaults. Raises ConfigError naming an unknown key."""
        known = {item.name for item in fields(cls)}
        for key in raw:
            _require(key in known, str(key), "a setting of this release", key)
        values = dict(raw)
        if "train_splits" in values:
            values["train_splits"] = tuple(values["train_splits"])
        return cls(**values)


def _require(condition: bool, key: str, expected: str, found: object) -> None:
    if not condition:
        raise ConfigError(f"{key}: expected {expected}; found {str(found)[:80]!r}", key=key)
