"""Running a plan: what is finished already is skipped, and each result is on the disk before the next run begins.

Knows how one method is trained and scored on one task; nothing of tables.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

import adakron
from adakron.training.classifier import forward_texts
from adakron.training.data import TaskData
from adakron.training.glue.results import Result, ResultFile
from adakron.training.glue.suites import Run, Suite
from adakron.training.glue.tasks import DATA_SEED, GlueData, load_glue
from adakron.training.loop import Schedule, fit, texts_of
from adakron.training.methods import ParameterCount
from adakron.training.precision import faster_precision
from adakron.training.recipe import Recipe
from adakron.training.run import load_backbone, probe_features, probe_logits, scores_on_validation, start_at_mean

Say = Callable[[str], None]
Features = tuple[np.ndarray, np.ndarray]


def run_suite(suite: Suite, source: str | None, out: Path, say: Say) -> list[Result]:
    """Every run of the suite that `out` does not hold yet; returns the results of all its runs, in their order.

    source  folder of the tasks' folders, or None for the hub
    say     gets a line when a run begins and when it ends

    Raises DataError, ConfigError, BackboneError; what was finished stays in `out`.
    """
    file = ResultFile(out)
    finished = {result.key: result for result in file.read()}
    bench = _Bench(source)
    plan = suite.plan()
    results = []
    for number, run in enumerate(plan, start=1):
        loaded = bench.data(run)
        key = run_key(run, loaded.data)
        if key not in finished:
            say(f"[{number}/{len(plan)}] {describe(run)}, {len(loaded.data.train):,} rows")
            finished[key] = bench.result(run, key, loaded)
            file.append(finished[key])
            said = ", ".join(f"{name} {finished[key].scores[name]:.4f}" for name in _shown(run))
            say(f"[{number}/{len(plan)}] {said} in {finished[key].seconds:,.0f} s")
        results.append(finished[key])
    return results


def describe(run: Run) -> str:
    """A run in a few words."""
    setting = f"strength {run.strength:g}" if run.strength is not None else f"lr {run.recipe.lr:g}"
    return f"{run.method.title.format(**run.recipe.to_dict())} on {run.task.title}, {setting}, seed {run.recipe.seed}"


def run_key(run: Run, data: TaskData) -> str:
    """The same key is the same run: method, settings and rows.

    Settings at their defaults are left out, so that one that a later release adds changes no key.
    """
    defaults = Recipe(name="defaults").to_dict()
    changed = {name: value for name, value in run.config().items() if value != defaults.get(name)}
    settings = [run.method.name, run.task.name, changed, data.digest()]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class _Bench:
    """Runs one at a time; the rows and the probe's features of the last task are kept for the next run."""

    def __init__(self, source: str | None) -> None:
        self.source = source
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._device = device
        self._dtype = faster_precision()
        self._data: tuple[object, GlueData] | None = None
        self._features: tuple[object, Features] | None = None

    def data(self, run: Run) -> GlueData:
        wanted = (run.task, run.recipe.max_rows, run.validation)
        if self._data is None or self._data[0] != wanted:
            self._data = (wanted, load_glue(run.task, self.source, run.recipe.max_rows, run.validation))
        return self._data[1]

    def result(self, run: Run, key: str, loaded: GlueData) -> Result:
        started = time.monotonic()
        run = replace(run, recipe=replace(run.recipe, dtype=self._dtype))
        probes = run.strength is not None
        parameters, training, logits = self._probe(run, loaded.data) if probes else _train(run, loaded.data)
        return Result(
            key=key,
            suite=run.suite,
            method=run.method.name,
            task=run.task.name,
            attempt=run.attempt,
            seed=run.recipe.seed,
            config=run.config(),
            rows={
                "train": len(loaded.data.train),
                "validation": len(loaded.data.validation),
                "selection": len(loaded.data.validation if probes else _selection(run, loaded.data)),
                "note": loaded.note,
            },
            parameters=asdict(parameters),
            scores=scores_on_validation(logits, loaded.data),
            training=training,
            seconds=round(time.monotonic() - started, 1),
            date=datetime.now(UTC).date().isoformat(),
            hardware=_hardware() | {"dtype": self._dtype},
        )

    def _probe(self, run: Run, data: TaskData) -> tuple[ParameterCount, dict[str, float], np.ndarray]:
        assert run.strength is not None
        wanted = (run.task, run.recipe.max_rows, run.validation, run.recipe.backbone)
        if self._features is None or self._features[0] != wanted:
            with _precision(run.recipe, self._device):
                self._features = (wanted, probe_features(run.recipe, data))
        train, validation = self._features[1]
        head = len(data.label_names) * (train.shape[1] + 1)
        return ParameterCount(0, head), {}, probe_logits(train, validation, data, run.strength)


def _train(run: Run, data: TaskData) -> tuple[ParameterCount, dict[str, float], np.ndarray]:
    recipe = run.recipe
    backbone = load_backbone(recipe)
    set_seed(recipe.seed)
    model = run.method.build(backbone, recipe, len(data.label_names), data.problem_type)
    parameters = ParameterCount.of(model)
    start_at_mean(model, data)
    chosen_on = replace(data, validation=_selection(run, data))
    schedule = Schedule(recipe.lr, recipe.epochs, recipe.weight_decay)
    outcome = fit(model, backbone, chosen_on, recipe, schedule, run.task.metric)
    with _precision(recipe, next(model.parameters()).device):
        logits = forward_texts(model, backbone, texts_of(data.validation), recipe.max_length)
    return parameters, asdict(outcome), logits


def _selection(run: Run, data: TaskData) -> tuple[Any, ...]:
    """The validation rows that choose the epoch: the same ones for every method."""
    if run.selection is None or run.selection >= len(data.validation):
        return data.validation
    return tuple(random.Random(DATA_SEED).sample(data.validation, run.selection))


def _precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def _shown(run: Run) -> tuple[str, ...]:
    return (run.task.metric, *run.task.also)


def _hardware() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "adakron": adakron.__version__,
    }
