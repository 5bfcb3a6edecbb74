"""What is run together, with which settings: from a name to a plan of single runs.

Knows recipes, methods and tasks; runs nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from adakron.errors import ConfigError
from adakron.training.glue.tasks import TASKS, GlueTask, task_named
from adakron.training.methods import METHODS, Method, method_named
from adakron.training.recipe import Recipe

LADDER = (1.0, 2.0, 0.5, 4.0, 0.25)
"""What a method's learning rate is multiplied by, in the order tried: the search budget is how many of them."""

PROBE_LADDER = (1.0, 10.0, 0.1, 100.0, 0.01)


@dataclass(frozen=True, slots=True)
class Suite:
    """Methods x tasks x learning rates x seeds.

    base           what all runs share
    rates          learning rate of a method, instead of its own, and of a method on one task ("adakron:rte")
    max_rows       training rows of a task; None: all. task_rows: of single tasks
    epochs         of a task; "": of the others
    lengths        tokens a row of a task may have, where not as in `base`
    attempts       learning rates tried for each method on each task
    validation     validation rows of a task that are scored, the same for every method; None: all
    selection      of these, how many choose the epoch; None: all
    """

    name: str
    about: str
    base: Recipe
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    epochs: Mapping[str, int]
    max_rows: int | None = None
    task_rows: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1
    seeds: tuple[int, ...] = (13,)
    validation: int | None = None
    selection: int | None = None

    def rows_of(self, task: str) -> int | None:
        """The most training rows of a task, None for all."""
        return self.task_rows.get(task, self.max_rows)

    def plan(self) -> "list[Run]":
        """Every run, the most telling first: each learning rate for all methods on all tasks before the next one.

        The probe makes all its attempts at once: its features are the same for all.
        """
        return [
            self._run(task_named(task), method_named(method), attempt, seed)
            for seed in self.seeds
            for turn in range(self.attempts)
            for task in self.tasks
            for method in self.methods
            for attempt in ((range(self.attempts) if turn == 0 else ()) if method == "probe" else (turn,))
        ]

    def _run(self, task: GlueTask, method: Method, attempt: int, seed: int) -> "Run":
        if attempt >= len(LADDER):
            raise ConfigError(f"attempts: expected at most {len(LADDER)}; found {attempt + 1}", key="attempts")
        rate = self.rates.get(f"{method.name}:{task.name}", self.rates.get(method.name, method.rate))
        recipe = replace(
            method.recipe(self.base),
            name=f"{method.name}-{task.name}",
            metric=task.metric,
            max_length=self.lengths.get(task.name, self.base.max_length),
            max_rows=self.rows_of(task.name),
            epochs=self.epochs.get(task.name, self.epochs[""]),
            seed=seed,
        )
        if method.name == "probe":
            strength = rate * PROBE_LADDER[attempt]
            return Run(self.name, task, method, recipe, attempt, self.validation, self.selection, strength)
        recipe = replace(recipe, lr=rate * LADDER[attempt])
        before = method.first.get(task.name)
        first = None if before is None else self._run(task_named(before), method, attempt, seed)
        return Run(self.name, task, method, recipe, attempt, self.validation, self.selection, None, first)


@dataclass(frozen=True, slots=True)
class Run:
    """One method on one task at one learning rate with one seed.

    strength  the probe's, which has no learning rate
    first     the run on another task whose weights this one begins with
    """

    suite: str
    task: GlueTask
    method: Method
    recipe: Recipe
    attempt: int
    validation: int | None
    selection: int | None
    strength: float | None
    first: "Run | None" = None

    def config(self) -> dict[str, Any]:
        """All that decides the outcome beside data and machine, as JSON values: dtype is the machine's choice."""
        recipe = {key: value for key, value in self.recipe.to_dict().items() if key not in ("name", "dtype")}
        first = None if self.first is None else self.first.task.name
        return recipe | {"selection": self.selection, "strength": self.strength, "first": first}


CHEAP_FIRST = ("cola", "sst2", "mrpc", "rte", "stsb", "qqp", "mnli", "qnli")
SIX = ("adakron", "madakron-full", "pfeiffer", "lora", "probe", "full")

_MINILM = Recipe(name="glue", batch=16, max_length=64, encoder_dropout=0.0, patience=2)

_AUTHORS = Recipe(
    name="glue",
    lr=3e-4,
    schedule="linear",
    warmup=0.06,
    batch=64,
    weight_decay=0.1,
    max_length=128,
    patience=80,  # no early stop: the best checkpoint of all epochs counts
)
_AUTHORS_EPOCHS = {"mnli": 20, "qnli": 20, "sst2": 20, "mrpc": 60, "rte": 60, "qqp": 60, "cola": 80, "stsb": 80, "": 80}
_AUTHORS_LENGTHS = {"rte": 256}
# Those of AdaKron are the authors'; of the others the script they publish has none.
_PAPER_RATES = {
    **{
        f"{method}{task}": rate
        for method in ("adakron", "madakron-full", "madakron-partial", "pfeiffer", "houlsby")
        for task, rate in (("", 3e-4), (":rte", 5e-4), (":qqp", 5e-4))
    },
    "lora": 4e-4,
    "ia3": 5e-3,
    "bitfit": 1e-3,
    "full": 2e-5,
}

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite(
                "quick",
                "five tasks, at most 1,500 training rows each, one learning rate, one seed",
                _MINILM,
                methods=("adakron", "pfeiffer", "lora", "probe", "full"),
                tasks=("sst2", "cola", "rte", "stsb", "mrpc"),
                epochs={"": 2},
                max_rows=1500,
                selection=250,
            ),
            Suite(
                "full",
                "the table of this project: six methods on eight tasks",
                _MINILM,
                methods=SIX,
                tasks=CHEAP_FIRST,
                epochs={"": 3},
                max_rows=1000,
                task_rows={"cola": 3000, "sst2": 3000, "stsb": 2000},
                validation=2000,
                selection=400,
            ),
            Suite(
                "whole",
                "every method on whole training sets, for a GPU",
                replace(_MINILM, batch=64, patience=80),
                methods=tuple(METHODS),
                tasks=CHEAP_FIRST,
                epochs={"mnli": 3, "qqp": 3, "sst2": 2, "qnli": 4, "cola": 8, "stsb": 8, "mrpc": 10, "rte": 12, "": 8},
            ),
            Suite(
                "paper-bert",
                "the paper's setting: bert-base-uncased, r = 48, all rows, the authors' hyper-parameters",
                replace(_AUTHORS, backbone="bert-base-uncased", bottleneck=48, pooling="pooler"),
                methods=tuple(METHODS),
                tasks=tuple(TASKS),
                epochs=_AUTHORS_EPOCHS,
                rates=_PAPER_RATES,
                lengths=_AUTHORS_LENGTHS,
            ),
            Suite(
                "paper-roberta",
                "the paper's setting: roberta-large, r = 16, all rows, the authors' hyper-parameters",
                replace(_AUTHORS, backbone="roberta-large", bottleneck=16, head="roberta", pooling="cls"),
                methods=tuple(METHODS),
                tasks=tuple(TASKS),
                epochs=_AUTHORS_EPOCHS,
                rates=_PAPER_RATES | {"full": 1e-5},
                lengths=_AUTHORS_LENGTHS,
            ),
        )
    }
)


def changed(
    suite: Suite,
    *,
    backbone: str | None = None,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    max_rows: int | None = None,
    seeds: Iterable[int] = (),
    attempts: int | None = None,
    epochs: int | None = None,
) -> Suite:
    """The suite with what the command line says instead; max_rows 0 stands for all rows. Raises for unknown names."""
    for method in methods:
        method_named(method)
    for task in tasks:
        task_named(task)
    changes: dict[str, Any] = {}
    if backbone is not None:
        changes["base"] = replace(suite.base, backbone=backbone)
    if methods:
        changes["methods"] = tuple(methods)
    if tasks:
        changes["tasks"] = tuple(tasks)
    if max_rows is not None:
        changes |= {"max_rows": max_rows or None, "task_rows": {}}
    if seeds := tuple(seeds):
        changes["seeds"] = seeds
    if attempts is not None:
        changes["attempts"] = attempts
    if epochs is not None:
        changes["epochs"] = {"": epochs}
    return replace(suite, **changes)
