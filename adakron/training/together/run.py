"""From recipes and data to proved artefacts, many in one process: one backbone trains all and one proves all.

Knows nothing of the command line, of files or of model cards.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from adakron.attachment import detach
from adakron.backbone import Backbone
from adakron.errors import AdaKronError, ConfigError
from adakron.text import TextOrPair
from adakron.training.classifier import encode, to_float32
from adakron.training.data import LabelledRow, TaskData
from adakron.training.loop import texts_of
from adakron.training.recipe import Recipe
from adakron.training.run import (
    Trained,
    exported,
    fit_probe,
    golden_texts,
    load_backbone,
    new_adapter,
    pooled_features,
)
from adakron.training.together.encoder import SharedEncoder
from adakron.training.together.features import HiddenStates
from adakron.training.together.lane import Lane, Rows
from adakron.training.together.loop import SideBySide

SHARED = ("backbone", "dtype", "encoder_dropout")
"""Settings that are the encoder's, and so have one value for all adapters that train on it."""

PASS_TOKENS = 2048
CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter to train; `examples` None: general golden texts."""

    recipe: Recipe
    data: TaskData
    metric: str
    examples: Sequence[TextOrPair] | None = None


def train_together(
    tasks: Sequence[Task],
    on_trained: Callable[[Task, Trained], None],
    *,
    pass_tokens: int = PASS_TOKENS,
    cache_bytes: int = CACHE_BYTES,
) -> dict[str, str]:
    """Train all tasks' adapters side by side; returns why each adapter that has no result has none, by name.

    Each adapter has its own batches, loss, optimiser, schedule, early stopping and best epoch, as alone. What differs
    from training alone: below an adapter's first layer nothing is dropped, so that those hidden states are computed
    once; and dropout draws come from one generator for all.

    on_trained   called once for each adapter, as soon as it is proved, while the others wait
    pass_tokens  of rows that go through the encoder as one batch; cache_bytes: of hidden states that are kept

    Raises ConfigError for settings that cannot differ or names that must, DataError for an unfit example,
    BackboneError. An adapter's failure is its own.
    """
    if not tasks:
        return {}
    started = time.monotonic()
    _check([task.recipe for task in tasks])
    backbone = load_backbone(max((task.recipe for task in tasks), key=lambda recipe: recipe.max_length))
    texts = {task.recipe.name: golden_texts(backbone, task.data, task.examples) for task in tasks}
    backbone.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]  # transformers wraps `to` and loses its overloads
    lanes = {task.recipe.name: _lane(backbone, task) for task in tasks}
    fresh = to_float32(load_backbone(tasks[0].recipe))  # the other has bfloat16 weights, and hooks
    by_name = {task.recipe.name: task for task in tasks}
    failures: dict[str, str] = {}
    encoder = SharedEncoder(backbone.model, torch.bfloat16 if tasks[0].recipe.dtype == "bfloat16" else None)

    with _Progress(lanes.values()) as progress:

        def end(lane: Lane) -> None:
            progress.over(lane)
            task = by_name[lane.name]
            try:
                if lane.failure is not None:
                    failures[lane.name] = lane.failure
                else:
                    lane.restore_best()
                    adapter, scores = exported(lane.model, lane.recipe, lane.data, texts[lane.name], fresh)
                    on_trained(task, Trained(adapter, scores, lane.outcome, time.monotonic() - started))
            except AdaKronError as error:
                failures[lane.name] = str(error)
            if lane.name in failures:
                progress.say(f"{lane.name} failed: {failures[lane.name]}")

        training = SideBySide(
            backbone,
            encoder,
            HiddenStates(backbone, encoder, cache_bytes),
            pass_tokens,
            on_step=progress.step,
            on_score=progress.say,
            on_end=end,
        )
        try:
            training.run(list(lanes.values()))
        finally:
            encoder.close()
    return failures


def probe_together(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """`run.linear_probe` of every task, by name: each text goes through one resident encoder once, whoever has it."""
    if not tasks:
        return {}
    _check([task.recipe for task in tasks])
    backbone = to_float32(load_backbone(max((task.recipe for task in tasks), key=lambda recipe: recipe.max_length)))
    found: dict[str, dict[str, Any]] = {}
    for pooling, max_length in sorted({(task.recipe.pooling, task.recipe.max_length) for task in tasks}):
        alike = [t for t in tasks if (t.recipe.pooling, t.recipe.max_length) == (pooling, max_length)]
        texts = list(dict.fromkeys(text for t in alike for text in texts_of([*t.data.train, *t.data.validation])))
        features = pooled_features(backbone, alike[0].recipe, texts)
        place = {text: index for index, text in enumerate(texts)}
        for task in alike:
            train, validation = (
                features[[place[text] for text in texts_of(rows)]] for rows in (task.data.train, task.data.validation)
            )
            found[task.recipe.name] = fit_probe(train, validation, task.data, task.metric)
    return found


def _check(recipes: Sequence[Recipe]) -> None:
    first = recipes[0]
    for recipe in recipes[1:]:
        for key in SHARED:
            ours, theirs = getattr(recipe, key), getattr(first, key)
            if ours != theirs:
                raise ConfigError(
                    f"{key}: expected one value for all adapters that train together; found {theirs!r} for "
                    f"{first.name!r} and {ours!r} for {recipe.name!r}",
                    key=key,
                    hint="train them in two runs",
                )
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"name: expected one adapter of each name; found several of {twice[0]!r}", key="name")


def _lane(backbone: Backbone, task: Task) -> Lane:
    """The adapter as training alone would start it, then taken off the encoder that all share."""
    model = new_adapter(backbone, task.recipe, task.data)
    detach(backbone.model)
    model.head.to(next(backbone.model.parameters()).device)
    by_length = sorted(task.data.validation, key=lambda row: len(row.text) + len(row.text_pair or ""))  # less padding
    train, validation = (_rows(backbone, task, rows) for rows in (task.data.train, by_length))
    return Lane(model, task.data, task.recipe, task.metric, train, validation)


def _rows(backbone: Backbone, task: Task, rows: Sequence[LabelledRow]) -> Rows:
    return Rows(
        encode(backbone, texts_of(rows), task.recipe.max_length), [task.data.target(labelled) for labelled in rows]
    )


class _Progress:
    """One bar for all adapters where a person looks on, and a line for each evaluation."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._live = len(lanes := list(lanes))
        self._bar = tqdm(
            total=sum(lane.total_steps for lane in lanes), unit="step", disable=not sys.stderr.isatty(), leave=False
        )
        self._say_live()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, _: Lane) -> None:
        self._bar.update()

    def say(self, text: str) -> None:
        self._bar.clear()
        print(text, flush=True)

    def over(self, lane: Lane) -> None:
        """An adapter that ends early takes its remaining steps out of the bar."""
        self._live -= 1
        self._bar.total -= lane.total_steps - lane.steps
        self._say_live()

    def _say_live(self) -> None:
        self._bar.set_postfix_str(f"{self._live} adapter{'s' if self._live != 1 else ''} training")
