"""From results to the table: each method's score on each task, and the average where no task is missing.

A method's score on a task is the best over the learning rates tried, as many for every method, averaged over the seeds
that every method has. Knows results; reads and writes no files.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adakron.training.glue.results import Result
from adakron.training.glue.tasks import TASKS
from adakron.training.methods import METHODS, VARIANTS, method_named

Cells = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Line:
    """One method.

    parameters  trainable ones, without the head
    head        those of the largest head
    scores      by task, those of the metric that counts, then the others, in percent
    """

    method: str
    title: str
    parameters: int
    head: int
    scores: Mapping[str, tuple[float, ...]]

    def average(self, tasks: Sequence[str]) -> float | None:
        """The mean of what counts, None where a task is missing."""
        if any(task not in self.scores for task in tasks):
            return None
        return statistics.fmean(self.scores[task][0] for task in tasks)


@dataclass(frozen=True, slots=True)
class Table:
    """tasks in the order of the columns; attempts: learning rates that count, by task."""

    tasks: tuple[str, ...]
    lines: tuple[Line, ...]
    attempts: Mapping[str, int]
    seeds: Mapping[str, tuple[int, ...]]

    @property
    def is_whole(self) -> bool:
        return all(line.average(self.tasks) is not None for line in self.lines)


def make_table(results: Sequence[Result], tasks: Iterable[str], methods: Iterable[str]) -> Table:
    """What `results` say of these tasks and methods; of the others in `results` nothing.

    On each task as many learning rates count as every method that has results there has tried, and the seeds that all
    of them have: a method that tried more gains nothing by it. Results on other rows or with other epochs than the
    task's last result are of another comparison and do not count.
    """
    columns = tuple(task for task in TASKS if task in set(tasks))
    wanted = [name for name in methods if any(r.method == name and r.task in columns for r in results)]
    cells: dict[str, Cells] = {name: {} for name in wanted}
    attempts, seeds = {}, {}
    for task in columns:
        here = [r for r in results if r.task == task and r.method in cells]
        if not here:
            continue
        here = [r for r in here if _terms(r) == _terms(here[-1])]
        present = [name for name in wanted if any(r.method == name for r in here)]
        common = set.intersection(*({r.seed for r in here if r.method == name} for name in present))
        tried = min((_tried(here, name, common) for name in present), default=0)
        if not common or not tried:
            continue
        attempts[task], seeds[task] = tried, tuple(sorted(common))
        for name in present:
            cells[name][task] = _cell([r for r in here if r.method == name], task, common, tried)
    lines = [_table_line(name, [r for r in results if r.method == name], cells[name]) for name in wanted]
    return Table(columns, tuple(line for line in lines if line.scores), attempts, seeds)


def _terms(result: Result) -> tuple[object, ...]:
    """What must be the same for scores to be comparable."""
    config, rows = result.config, result.rows
    shared = ("backbone", "pooling", "head", "max_length", "epochs", "batch", "patience", "schedule", "warmup")
    return (*(rows[part] for part in ("train", "validation", "note")), *(config[name] for name in shared))


def _tried(results: Sequence[Result], method: str, seeds: Iterable[int]) -> int:
    """How many learning rates, from the first on without a gap, the method has tried with every one of the seeds."""
    counts = []
    for seed in seeds:
        done = {r.attempt for r in results if r.method == method and r.seed == seed}
        counts.append(next(n for n in range(len(done) + 1) if n not in done))
    return min(counts, default=0)


def _cell(results: Sequence[Result], task: str, seeds: Iterable[int], tried: int) -> tuple[float, ...]:
    metric, also = TASKS[task].metric, TASKS[task].also
    best = [
        max((r for r in results if r.seed == seed and r.attempt < tried), key=lambda r: r.scores[metric])
        for seed in seeds
    ]
    return tuple(100 * statistics.fmean(r.scores[name] for r in best) for name in (metric, *also))


def _table_line(name: str, results: Sequence[Result], cells: Cells) -> Line:
    last = results[-1]
    head = max(result.parameters["head"] for result in results)
    return Line(name, method_named(name).title.format(**last.config), last.parameters["method"], head, cells)


TITLES = {name: task.title for name, task in TASKS.items()}
METRIC_TITLES = {
    name: f"{task.title} {'F1' if task.metric == 'f1' else task.metric.capitalize()}" for name, task in TASKS.items()
}

PUBLISHED: Mapping[str, tuple[str, tuple[float, ...], float]] = {
    "full fine-tuning": ("110 M", (83.2, 90.0, 91.6, 87.4, 90.9, 62.1, 66.4, 89.8), 82.7),
    "Pfeiffer r48": ("0.9 M", (83.3, 91.1, 92.0, 87.5, 90.7, 60.3, 67.6, 89.6), 82.7),
    "LoRA": ("0.3 M", (82.5, 89.9, 91.5, 86.0, 90.0, 60.5, 71.5, 85.7), 82.2),
    "AdaKron r48": ("0.6 M", (83.5, 91.1, 92.0, 87.1, 90.8, 61.1, 73.8, 89.4), 83.6),
}
"""The paper's own table for BERT-base: parameters, the eight scores in the order of TASKS, their average."""


def plain(table: Table, mark: str) -> str:
    """Fixed-width text for the terminal. mark: what the table is, said above it."""
    head, *rows = [_head(table, TITLES), *_rows(table)]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (head, *rows)]
    return "\n".join([f"{mark} {partial(table)}".strip(), *lines])


def markdown(table: Table) -> str:
    """The same for a page, each task with the metric that counts."""
    return _pipes(_head(table, METRIC_TITLES), _rows(table))


def published() -> str:
    """The paper's own table for BERT-base, for a page."""
    head = ["BERT-base, as published", "parameters", *(task.title for task in TASKS.values()), "average"]
    rows = [
        [title, parameters, *(f"{score:.1f}" for score in scores), f"{average:.1f}"]
        for title, (parameters, scores, average) in PUBLISHED.items()
    ]
    return _pipes(head, rows)


def partial(table: Table) -> str:
    """A warning where a score is missing, nothing where none is."""
    return "" if table.is_whole else "PARTIAL: runs are missing, and no average is given over what is there."


def known_methods(results: Iterable[Result]) -> list[str]:
    """The methods that have results, in the order of METHODS, then of VARIANTS."""
    there = {result.method for result in results}
    return [name for name in (*METHODS, *VARIANTS) if name in there]


def _rows(table: Table) -> list[list[str]]:
    return [[line.title, f"{line.parameters:,}", *_scores(line, table)] for line in table.lines]


def _scores(line: Line, table: Table) -> list[str]:
    cells = [f"{line.scores[task][0]:.1f}" if task in line.scores else "-" for task in table.tasks]
    average = line.average(table.tasks)
    return [*cells, "-" if average is None else f"{average:.1f}"]


def _head(table: Table, titles: Mapping[str, str]) -> list[str]:
    return ["method", "parameters", *(titles[task] for task in table.tasks), "average"]


def _pipes(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
