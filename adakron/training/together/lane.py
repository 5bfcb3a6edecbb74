"""One adapter among those that are trained side by side: its rows, its optimiser, its best weights, its end.

Knows one adapter; nothing of the others or of how rows get through the encoder.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_length_grouped_indices

from adakron.training.classifier import Classifier
from adakron.training.data import TaskData
from adakron.training.loop import Outcome
from adakron.training.metrics import score
from adakron.training.rates import decay_by_layer
from adakron.training.recipe import Recipe
from adakron.training.together.features import EncodedRow

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokenised rows without padding, and for each what the loss compares its logits with."""

    encoded: Sequence[EncodedRow]
    targets: Sequence[int | float | list[float]]

    def __len__(self) -> int:
        return len(self.encoded)

    def length(self, index: int) -> int:
        """Tokens of a row."""
        return len(self.encoded[index]["input_ids"])


class Lane:
    """An adapter in training. It takes the steps that `loop.fit` would take: the same batches by one seed alone.

    failure     why its training ended without a result, or None
    is_over     nothing more to train: all epochs done, patience at an end, or failed
    """

    def __init__(
        self, model: Classifier, data: TaskData, recipe: Recipe, metric: str, train: Rows, validation: Rows
    ) -> None:
        self.model, self.data, self.recipe, self.metric = model, data, recipe, metric
        self.train, self.validation = train, validation
        self.steps_an_epoch = math.ceil(len(train) / recipe.batch)
        self.total_steps = self.steps_an_epoch * recipe.epochs
        self.steps = 0
        self.adapters = model.layer_adapters()
        self.failure: str | None = None
        self.is_over = False
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = _optimizer(model, recipe)
        decay_by_layer(self._optimizer, self.adapters, recipe.layer_decay)
        self._schedule = get_scheduler(
            recipe.schedule,
            self._optimizer,
            num_warmup_steps=math.ceil(self.total_steps * recipe.warmup),
            num_training_steps=self.total_steps,
        )
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._order: Iterator[list[int]] = iter(())
        self._between = {round(self.steps_an_epoch * n / recipe.evaluations) for n in range(1, recipe.evaluations + 1)}
        self._best, self._best_score, self._best_epoch = model.trainable(), -math.inf, 0.0
        self._losses: list[Tensor] = []

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def epoch(self) -> float:
        return round(self.steps / self.steps_an_epoch, 2)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.epoch, self._best_epoch, self._best_score)

    def next_batch(self) -> list[int]:
        """Indices of the training rows of the next step; rows of like length come together."""
        batch = next(self._order, None)
        if batch is None:
            lengths = [self.train.length(index) for index in range(len(self.train))]
            size = self.recipe.batch
            order = get_length_grouped_indices(lengths, size, generator=self._generator)  # type: ignore[no-untyped-call]  # transformers gives it no types
            self._order = iter([order[start : start + size] for start in range(0, len(order), size)])
            batch = next(self._order)
        return batch

    def step(self, loss: Tensor) -> None:
        """One step down the gradients that are there, clipped to this adapter's norm. Fails on what is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            what = f"the loss became {value}" if not math.isfinite(value) else "the gradient is not finite"
            self.fail(f"{what} in step {self.steps + 1} of {self.total_steps}")
            return
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._losses.append(loss.detach())

    def fail(self, why: str) -> None:
        """End this adapter's training without a result."""
        self.failure, self.is_over = why, True
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def is_due(self) -> bool:
        """Whether the step just taken is one after which to evaluate."""
        return not self.is_over and ((self.steps - 1) % self.steps_an_epoch) + 1 in self._between

    def judge(self, logits: Tensor) -> str:
        """Score the validation rows' logits [N, L]: keep the weights if best, end if due. Returns what to say."""
        targets = torch.tensor(self.validation.targets).numpy()
        value = score(logits.numpy(), targets, self.data.problem_type, self.data.label_names)[self.metric]
        is_better = value > self._best_score  # false for NaN
        if is_better:
            self._best, self._best_score, self._best_epoch = self.model.trainable(), value, self.epoch
        self.is_over = self.steps >= self.total_steps or (
            not is_better and self.epoch - self._best_epoch >= self.recipe.patience
        )
        loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        mark = "  best so far" if is_better else ""
        return f"{self.name} epoch {self.epoch:g}: loss {loss:.4f}, {self.metric} {value:.4f}{mark}"

    def set_training(self, is_training: bool) -> None:
        """Of the parts that are this adapter's own; the encoder is everybody's."""
        self.model.adapters.train(is_training)
        self.model.head.train(is_training)

    def restore_best(self) -> None:
        """Leave the best epoch's weights in the model, in eval mode."""
        self.model.restore(self._best)
        self.set_training(False)


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW as Trainer sets it up: no decay of biases."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if "bias" not in name], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in named if "bias" in name], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
