"""Results made up for tests of tables and files."""

from dataclasses import replace
from typing import Any

from adakron.training.glue.results import Result
from adakron.training.glue.suites import SUITES
from adakron.training.glue.tasks import TASKS

PLAN = {(run.method.name, run.task.name): run for run in SUITES["paper-bert"].plan()}


def result(method: str, task: str, value: float, *, attempt: int = 0, seed: int = 13, **changes: Any) -> Result:
    """One run; `value` is its score on everything that counts or is usually given."""
    counts = [TASKS[task].metric, *TASKS[task].also]
    made = Result(
        key=f"{method}-{task}-{attempt}-{seed}",
        suite="full",
        method=method,
        task=task,
        attempt=attempt,
        seed=seed,
        config=PLAN.get((method, task), PLAN["adakron", task]).config(),
        rows={"train": 100, "validation": 50, "selection": 50, "note": None},
        parameters={"method": 1000, "head": 10},
        scores=dict.fromkeys(counts, value),
        training={"epochs": 3.0, "best_epoch": 2.0, "best_score": value},
        seconds=1.5,
        date="2026-11-26",
        hardware={"device": "AVX2", "cores": 2, "dtype": "float32"},
    )
    return replace(made, **changes)
