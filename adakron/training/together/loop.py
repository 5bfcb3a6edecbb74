"""Training adapters side by side: which rows go through the encoder together, and one step after another.

Knows lanes and the encoder; nothing of files, cards or the command line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adakron.backbone import Backbone
from adakron.training.classifier import pad
from adakron.training.together.encoder import Segment, SharedEncoder
from adakron.training.together.features import EncodedRow, HiddenStates
from adakron.training.together.lane import Lane, Rows

EVALUATION_ROWS = 64


@dataclass(frozen=True, slots=True)
class Portion:
    """The rows of one lane's next step."""

    lane: Lane
    rows: Sequence[EncodedRow]
    labels: Tensor

    @property
    def longest(self) -> int:
        return max(len(row["input_ids"]) for row in self.rows)


class SideBySide:
    """Trains lanes on one encoder until each is over.

    Every lane that is not over takes one step a round, on its own rows, by its own loss and optimiser. Rows of several
    lanes go through the encoder as one batch while it stays within the budget, so no lane's step depends on another's.

    pass_tokens   the budget of such a batch, rows times the longest of them; the rows of one step are never divided
    on_step       told of each lane that took a step; on_score of what an evaluation found; on_end of a lane's end
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: SharedEncoder,
        states: HiddenStates,
        pass_tokens: int,
        *,
        on_step: Callable[[Lane], None],
        on_score: Callable[[str], None],
        on_end: Callable[[Lane], None],
    ) -> None:
        self._backbone, self._encoder, self._states, self._budget = backbone, encoder, states, pass_tokens
        self._on_step, self._on_score, self._on_end = on_step, on_score, on_end

    def run(self, lanes: Sequence[Lane]) -> None:
        """Train to the end; lanes end when they do, and leave the batches of the others."""
        live = list(lanes)
        while live:
            for together in passes([_portion(lane) for lane in live], self._budget):
                self.step(together)
                for portion in together:
                    self._after_step(portion.lane)
            live = [lane for lane in live if not lane.is_over]

    def step(self, portions: Sequence[Portion]) -> None:
        """One step of each of these lanes, which start at one layer, on their rows in one batch.

        The losses are summed and not averaged: the gradient of each adapter is that of its own loss.
        """
        rows = [row for portion in portions for row in portion.rows]
        layer = portions[0].lane.recipe.first_layer
        segments, start = [], 0
        for portion in portions:
            segments.append(Segment(slice(start, start + len(portion.rows)), portion.lane.adapters))
            start += len(portion.rows)
        for portion in portions:
            portion.lane.set_training(True)
        hidden, mask = self._hidden(rows, layer, segments, is_training=True)
        losses = []
        with self._encoder.autocast():
            for portion, segment in zip(portions, segments, strict=True):
                logits = portion.lane.model.logits(hidden[segment.rows], mask[segment.rows])
                losses.append(portion.lane.model.loss(logits, portion.labels.to(logits.device)))
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        for portion, loss in zip(portions, losses, strict=True):
            portion.lane.step(loss.detach())
            self._on_step(portion.lane)

    def logits(self, lane: Lane, rows: Rows) -> Tensor:
        """Logits [N, L] float32 of a lane's adapter as it is now, on the CPU."""
        lane.set_training(False)
        layer, found = lane.recipe.first_layer, []
        with torch.no_grad():
            for start in range(0, len(rows), EVALUATION_ROWS):
                part = rows.encoded[start : start + EVALUATION_ROWS]
                segment = Segment(slice(0, len(part)), lane.adapters)
                hidden, mask = self._hidden(part, layer, [segment], is_training=False)
                with self._encoder.autocast():
                    found.append(lane.model.logits(hidden, mask).cpu())
        return torch.cat(found)

    def _after_step(self, lane: Lane) -> None:
        if lane.is_due:
            self._on_score(lane.judge(self.logits(lane, lane.validation)))
        if lane.is_over:
            self._on_end(lane)

    def _hidden(
        self, rows: Sequence[EncodedRow], layer: int, segments: Sequence[Segment], *, is_training: bool
    ) -> tuple[Tensor, Tensor]:
        """The last hidden state [B, T, D] and the mask [B, T]."""
        batch = {name: ids.to(self._encoder.device) for name, ids in pad(rows, self._backbone).items()}
        entering = self._states.entering(rows, layer) if layer and self._encoder.can_be_entered else None
        hidden = self._encoder.above(entering, batch, layer, segments, is_training=is_training)
        return hidden, batch["attention_mask"]


def passes(portions: Sequence[Portion], budget: int) -> Iterator[list[Portion]]:
    """Portions as batches: of one first layer, of like length, rows times the longest within the budget."""
    together: list[Portion] = []
    rows = 0
    for portion in sorted(portions, key=lambda p: (p.lane.recipe.first_layer, p.longest)):
        fits = (rows + len(portion.rows)) * portion.longest <= budget  # sorted: the last one is the longest
        if together and not (fits and portion.lane.recipe.first_layer == together[0].lane.recipe.first_layer):
            yield together
            together, rows = [], 0
        together.append(portion)
        rows += len(portion.rows)
    if together:
        yield together


def _portion(lane: Lane) -> Portion:
    chosen = lane.next_batch()
    return Portion(
        lane,
        [lane.train.encoded[index] for index in chosen],
        torch.tensor([lane.train.targets[index] for index in chosen]),
    )
