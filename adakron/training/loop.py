"""One training run of a classifier with transformers' Trainer: epochs, early stopping, the best epoch kept.

Knows rows and a `Classifier`; nothing of files, cards or the command line.
"""

import math
import sys
import tempfile
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.import_utils import is_torch_tf32_available

from adakron.backbone import Backbone
from adakron.text import TextOrPair
from adakron.training.classifier import Classifier, encode, pad
from adakron.training.data import LabelledRow, TaskData
from adakron.training.metrics import score
from adakron.training.rates import decay_by_layer
from adakron.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Outcome:
    """epochs trained; best_epoch: when the kept weights were measured; best_score: theirs, in training precision."""

    epochs: float
    best_epoch: float
    best_score: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """What differs between training an adapter and training the whole encoder."""

    lr: float
    epochs: int
    weight_decay: float


class KeepBest(TrainerCallback):
    """After each evaluation: say the score, keep the weights if it is the best, stop when patience is at an end.

    The trained weights are few, so they are kept in memory; Trainer's checkpoints would write the frozen encoder too.

    patience   in epochs
    steps      of one epoch; between: those after which to evaluate, besides the last
    """

    def __init__(self, model: Classifier, metric: str, patience: int, steps: int, between: Set[int]) -> None:
        self.model, self.metric, self.patience = model, metric, patience
        self.steps, self.between = steps, between
        self.best: dict[str, Tensor] = model.trainable()
        self.best_score, self.best_epoch, self.epochs = -math.inf, 0.0, 0.0
        self.loss = math.nan

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.steps in self.between:
            control.should_log = control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.epochs = round(state.epoch or 0.0, 2)
        value = (metrics or {})[f"eval_{self.metric}"]
        better = value > self.best_score  # false for NaN
        if better:
            self.best, self.best_score, self.best_epoch = self.model.trainable(), value, self.epochs
        elif self.epochs - self.best_epoch >= self.patience:
            control.should_training_stop = True
        mark = "  best so far" if better else ""
        print(f"epoch {self.epochs:g}: loss {self.loss:.4f}, {self.metric} {value:.4f}{mark}", flush=True)


class _Bar(ProgressCallback):
    """The progress bar alone: the scores are said by KeepBest."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        return


def texts_of(rows: Sequence[LabelledRow]) -> list[TextOrPair]:
    """What the tokenizer takes for each row."""
    return [row.text if row.text_pair is None else (row.text, row.text_pair) for row in rows]


def fit(
    model: Classifier,
    backbone: Backbone,
    data: TaskData,
    recipe: Recipe,
    schedule: Schedule,
    metric: str,
    teacher: np.ndarray | None = None,
) -> Outcome:
    """Train `model` in place and leave its best epoch's weights in it, in eval mode.

    Batches are padded to their longest row, and rows of like length come together. One seed gives one result on one
    machine.

    teacher  logits [N, L] of another classifier for the training rows, to be learnt from beside their labels
    """
    train = _tokenised(backbone, data, data.train, recipe.max_length)
    if teacher is not None:
        train = train.add_column("teacher", list(teacher.astype(np.float32)))
    by_length = sorted(data.validation, key=lambda row: len(row.text) + len(row.text_pair or ""))  # less padding
    validation = _tokenised(backbone, data, by_length, recipe.max_length)
    steps = math.ceil(len(train) / recipe.batch)
    between = {round(steps * part / recipe.evaluations) for part in range(1, recipe.evaluations)}
    keeper = KeepBest(model, metric, recipe.patience, steps, between)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        beside = {name: torch.tensor([row[name] for row in rows]) for name in ("labels", "teacher") if name in rows[0]}
        return pad(rows, backbone) | beside

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        return score(logits, labels, data.problem_type, data.label_names)  # type: ignore[arg-type]  # transformers also allows tuples of arrays, for models of several outputs: this has one

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(recipe, schedule, scratch),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collate,
            compute_metrics=measure,
            callbacks=[keeper],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if sys.stderr.isatty():
            trainer.add_callback(_Bar)
        decay_by_layer(trainer.create_optimizer(), model.adapters, recipe.layer_decay)
        trainer.train()
    model.restore(keeper.best)
    model.eval()
    return Outcome(keeper.epochs, keeper.best_epoch, keeper.best_score)


def _tokenised(backbone: Backbone, data: TaskData, rows: Sequence[LabelledRow], max_length: int) -> Dataset:
    encoded = encode(backbone, texts_of(rows), max_length)
    return Dataset.from_list(
        [
            row | {"labels": data.target(labelled), "length": len(row["input_ids"])}
            for row, labelled in zip(encoded, rows, strict=True)
        ]
    )


def _arguments(recipe: Recipe, schedule: Schedule, scratch: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        save_strategy="no",
        eval_strategy="epoch",
        logging_strategy="epoch",
        learning_rate=schedule.lr,
        num_train_epochs=schedule.epochs,
        weight_decay=schedule.weight_decay,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,  # below 1, Trainer reads it as a share of all steps
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=recipe.seed,
        bf16=recipe.dtype == "bfloat16",
        tf32=is_torch_tf32_available() or None,  # products of float32 on tensor cores
        logging_nan_inf_filter=False,  # it waits for the device in every step
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
