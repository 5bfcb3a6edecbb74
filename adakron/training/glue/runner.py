"""Running a plan: what is finished already is skipped, and each result is on the disk before the next run begins.

Knows how one method is trained and scored on one task; nothing of tables.
"""

import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

import adakron
from adakron.backbone import Backbone
from adakron.training.classifier import Classifier, forward_texts
from adakron.training.data import LabelledRow, TaskData
from adakron.training.glue.results import Result, ResultFile
from adakron.training.glue.suites import Run, Suite
from adakron.training.glue.tasks import DATA_SEED, GlueData, load_glue
from adakron.training.loop import Outcome, Schedule, fit, texts_of
from adakron.training.methods import ParameterCount, method_named
from adakron.training.precision import faster_precision
from adakron.training.recipe import Precision, Recipe
from adakron.training.run import load_backbone, probe_features, probe_logits, scores_on_validation, start_at_mean

Say = Callable[[str], None]
Features = tuple[np.ndarray, np.ndarray]


def run_suite(
    suite: Suite, source: str | None, out: Path, say: Say, jobs: int = 1, dtype: Precision | None = None
) -> list[Result]:
    """Every run of the suite that `out` does not hold yet; returns the results of all its runs, in their order.

    source  folder of the tasks' folders, or None for the hub
    say     gets a line when a run begins and when it ends
    jobs    runs at a time, each in a process of its own: a small encoder leaves most of a GPU idle
    dtype   of the matrix products; None: the faster one here

    Raises DataError, ConfigError, BackboneError; what was finished stays in `out`.
    """
    file = ResultFile(out)
    finished = {result.key: result for result in file.read()}
    bench = _Bench(source, dtype or faster_precision())
    plan = [bench.planned(run) for run in suite.plan()]
    missing = {planned.key: planned for planned in plan if planned.key not in finished}
    repeats = {planned.plain: planned for planned in missing.values() if planned.plain in {*finished, *missing}}
    to_do = [planned for planned in missing.values() if planned.plain not in repeats]

    def keep(result: Result) -> None:
        file.append(result)
        finished[result.key] = result
        run = missing[result.key].run
        said = ", ".join(f"{name} {result.scores[name]:.4f}" for name in _shown(run))
        done = sum(planned.key in finished for planned in plan)
        say(f"[{done}/{len(plan)}] {describe(run)}: {said} in {result.seconds:,.0f} s")
        repeat(result)

    def repeat(result: Result) -> None:
        """The same run under another name is not trained again."""
        if (same := repeats.get(result.key)) is not None:
            keep(replace(result, key=same.key, method=same.run.method.name))

    for result in [finished[key] for key in repeats if key in finished]:
        repeat(result)
    for result in bench.results(to_do, say) if jobs == 1 else _side_by_side(to_do, bench, jobs):
        keep(result)
    return [finished[planned.key] for planned in plan]


def describe(run: Run) -> str:
    """A run in a few words."""
    setting = f"strength {run.strength:g}" if run.strength is not None else f"lr {run.recipe.lr:g}"
    title = run.method.title.format(**run.recipe.to_dict())
    return f"{title} on {run.task.title}, {setting}, seed {run.recipe.seed}"


def run_key(run: Run, digest: str, method: str | None = None) -> str:
    """The same key is the same run: method, settings and rows, of which `digest` is `TaskData.digest`.

    Settings at their defaults are left out, so that one that a later release adds changes no key.

    method  the name of one that trains as the run's own does
    """
    defaults = Recipe(name="defaults").to_dict()
    changed = {name: value for name, value in run.config().items() if value != defaults.get(name)}
    settings = [method or run.method.name, run.task.name, changed, digest]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A run with its key and the rows it trains on, over all epochs.

    plain  the key of the same run under the name of the method's `plain`
    """

    run: Run
    key: str
    rows: int
    plain: str | None


def _rows_wanted(run: Run) -> object:
    """Equal for runs on the same rows of one source."""
    return run.task, run.recipe.max_rows, run.validation


class _Bench:
    """Runs one at a time; the rows and the probe's features of the last task are kept for the next run."""

    def __init__(self, source: str | None, dtype: Precision) -> None:
        self.source, self.dtype = source, dtype
        self._data: tuple[object, GlueData] | None = None
        self._known: dict[object, tuple[str, int]] = {}
        self._features: tuple[object, Features] | None = None
        self._weights: dict[str, Mapping[str, Tensor]] = {}

    def planned(self, run: Run) -> _Planned:
        """What is to be known of a run before it begins; a task's rows are read once for all its runs."""
        digest, rows = self._digest_and_rows(run)
        if run.first is not None:
            first_digest, first_rows = self._digest_and_rows(run.first)
            digest, rows = f"{digest} {first_digest}", rows + first_rows
        plain = run_key(run, digest, run.method.plain) if run.method.plain and run.first is None else None
        return _Planned(run, run_key(run, digest), rows, plain)

    def _digest_and_rows(self, run: Run) -> tuple[str, int]:
        """The digest of a run's rows, and how many it trains on, over all epochs."""
        wanted = _rows_wanted(run)
        if wanted not in self._known:
            data = self.data(run).data
            self._known[wanted] = data.digest(), len(data.train)
        digest, rows = self._known[wanted]
        return digest, rows * run.recipe.epochs

    def data(self, run: Run) -> GlueData:
        wanted = _rows_wanted(run)
        if self._data is None or self._data[0] != wanted:
            self._data = (wanted, load_glue(run.task, self.source, run.recipe.max_rows, run.validation))
        return self._data[1]

    def results(self, plan: Sequence[_Planned], say: Say) -> Iterator[Result]:
        """Each run's result, in their order."""
        for planned in plan:
            say(f"{describe(planned.run)}, {len(self.data(planned.run).data.train):,} rows")
            yield self.result(planned.run, planned.key)

    def result(self, run: Run, key: str) -> Result:
        begin = self._first_weights(run)
        started = time.monotonic()
        loaded = self.data(run)
        run = replace(run, recipe=replace(run.recipe, dtype=self.dtype))
        probes = run.strength is not None
        parameters, training, logits = self._probe(run, loaded.data) if probes else _train(run, loaded.data, begin)
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
            hardware=_hardware() | {"dtype": self.dtype},
        )

    def _first_weights(self, run: Run) -> Mapping[str, Tensor]:
        """What a run begins with: all that its first run trained, the head apart; nothing where there is none."""
        if run.first is None:
            return {}
        first = replace(run.first, recipe=replace(run.first.recipe, dtype=self.dtype))
        key = run_key(first, self._digest_and_rows(first)[0])
        if key not in self._weights:
            model, _, _ = _trained(first, self.data(first).data)
            self._weights[key] = {n: t.cpu() for n, t in model.trainable().items() if not n.startswith("head.")}
        return self._weights[key]

    def _probe(self, run: Run, data: TaskData) -> tuple[ParameterCount, dict[str, float], np.ndarray]:
        assert run.strength is not None
        wanted = _rows_wanted(run), run.recipe.backbone
        if self._features is None or self._features[0] != wanted:
            with _precision(run.recipe):
                self._features = (wanted, probe_features(run.recipe, data))
        train, validation = self._features[1]
        head = len(data.label_names) * (train.shape[1] + 1)
        return ParameterCount(0, head), {}, probe_logits(train, validation, data, run.strength)


def _side_by_side(plan: Sequence[_Planned], bench: _Bench, jobs: int) -> Iterator[Result]:
    """The runs' results as they come, `jobs` at a time, the longest begun first; the first error ends them all."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pool = ProcessPoolExecutor(jobs, spawn, initializer=_begin_job, initargs=(bench.source, bench.dtype, jobs))
    order = sorted(plan, key=lambda planned: (planned.run.recipe.seed, planned.run.attempt, -planned.rows))
    try:
        for done in as_completed([pool.submit(_job, planned.run, planned.key) for planned in order]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


_jobs_bench: _Bench | None = None


def _begin_job(source: str | None, dtype: Precision, jobs: int) -> None:
    global _jobs_bench
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # epochs of many runs at once say nothing to a reader
    _jobs_bench = _Bench(source, dtype)


def _job(run: Run, key: str) -> Result:
    assert _jobs_bench is not None
    return _jobs_bench.result(run, key)


def _train(
    run: Run, data: TaskData, begin: Mapping[str, Tensor]
) -> tuple[ParameterCount, dict[str, float], np.ndarray]:
    teacher = None
    if run.method.teacher is not None:
        taught = _taught_by(run)
        teacher = _logits(taught, *_trained(taught, data)[:2], data.train)
    model, backbone, outcome = _trained(run, data, teacher, begin)
    return ParameterCount.of(model), asdict(outcome), _logits(run, model, backbone, data.validation)


def _taught_by(run: Run) -> Run:
    """The run of a method's teacher, at the rate at which that is tried first."""
    assert run.method.teacher is not None
    method = method_named(run.method.teacher)
    return replace(run, method=method, recipe=method.recipe(replace(run.recipe, lr=method.rate)))


def _trained(
    run: Run, data: TaskData, teacher: np.ndarray | None = None, begin: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[Classifier, Backbone, Outcome]:
    recipe = run.recipe
    backbone = load_backbone(recipe)
    set_seed(recipe.seed)
    model = run.method.build(backbone, recipe, len(data.label_names), data.problem_type)
    start_at_mean(model, data)
    model.restore(begin)
    chosen_on = replace(data, validation=_selection(run, data))
    schedule = Schedule(recipe.lr, recipe.epochs, recipe.weight_decay)
    return model, backbone, fit(model, backbone, chosen_on, recipe, schedule, run.task.metric, teacher)


def _logits(run: Run, model: Classifier, backbone: Backbone, rows: Sequence[LabelledRow]) -> np.ndarray:
    with _precision(run.recipe):
        return forward_texts(model, backbone, texts_of(rows), run.recipe.max_length)


def _selection(run: Run, data: TaskData) -> tuple[Any, ...]:
    """The validation rows that choose the epoch: the same ones for every method."""
    if run.selection is None or run.selection >= len(data.validation):
        return data.validation
    return tuple(random.Random(DATA_SEED).sample(data.validation, run.selection))


def _precision(recipe: Recipe) -> AbstractContextManager[Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=recipe.dtype == "bfloat16")


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
