"""The page of results: under which conditions, the table, the paper's beside it, and a picture.

Knows results and files; trains nothing.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from adakron.errors import DataError
from adakron.training.glue.results import Result
from adakron.training.glue.table import Table, known_methods, make_table, markdown, partial, published
from adakron.training.glue.tasks import TASKS

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def results_table(results: Sequence[Result]) -> Table:
    """Every task and method that has results."""
    return make_table(results, {result.task for result in results}, known_methods(results))


def conditions(results: Sequence[Result]) -> str:
    """What the results have in common, in a sentence."""
    rows = max(result.rows["train"] for result in results)
    table = results_table(results)
    seeds = max(map(len, table.seeds.values()), default=1)
    rates = max(table.attempts.values(), default=1)
    backbones = sorted({str(result.config["backbone"]) for result in results})
    return (
        f"backbone {', '.join(backbones)}; at most {rows:,} training rows a task; "
        f"{'one seed' if seeds == 1 else f'the mean of up to {seeds} seeds'}; "
        f"{'one learning rate' if rates == 1 else f'the best of up to {rates} learning rates'} a method and task."
    )


def page_part(results: Sequence[Result], picture: str) -> str:
    """The part of a page that results decide: of each suite in them its table and what it was trained on.

    picture  file name of the picture beside the page
    """
    parts = []
    for suite in dict.fromkeys(result.suite for result in results):
        of_suite = [result for result in results if result.suite == suite]
        table = results_table(of_suite)
        warning = f"**{partial(table)}**\n\n" if partial(table) else ""
        parts += [
            f"Suite `{suite}`: {conditions(of_suite)} {_measured_on(of_suite)}",
            warning + markdown(table),
            _rows_of(table, of_suite),
        ]
    if results:
        parts.append(f"![Mean score against trainable parameters]({picture})")
    else:
        parts.append("No results yet.")
    return "\n\n".join([*parts, "**The paper's own table**, whole training sets:", published()])


def _measured_on(results: Sequence[Result]) -> str:
    """Machines, number formats and dates, as the results name them."""
    machines = {f"{r.hardware['device']} with {r.hardware['cores']} cores, {r.hardware['dtype']}" for r in results}
    dates = sorted({result.date for result in results})
    return f"{'; '.join(sorted(machines))}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def _counted(number: int, thing: str) -> str:
    return f"one {thing}" if number == 1 else f"{number} {thing}s"


def _rows_of(table: Table, results: Sequence[Result]) -> str:
    """A list of what each task was trained and scored on."""
    lines = []
    for task in table.tasks:
        last = [result for result in results if result.task == task][-1]
        rows, config = last.rows, last.config
        lines.append(
            f"* {TASKS[task].title}: {rows['train']:,} training rows, {config['epochs']} epochs at most, "
            f"{_counted(table.attempts.get(task, 0), 'learning rate')}, "
            f"{_counted(len(table.seeds.get(task, ())), 'seed')}, {rows['validation']:,} validation rows, "
            f"{rows['selection']:,} of them to choose the epoch" + (f"; {rows['note']}" if rows["note"] else "")
        )
    return "\n".join(lines)


def write_page(path: Path, results: Sequence[Result]) -> list[Path]:
    """Write results into the page, between its two marks, and draw the first suite's picture beside it.

    Returns what was written.

    A page that is not there is made. Raises DataError for one without the marks, and where there are no results.
    """
    if not results:
        raise DataError(f"{path}: no results to write", hint="run `adakron glue` first, with the same --out")
    page = path.read_text(encoding="utf-8") if path.is_file() else f"# GLUE\n\n{BEGIN}\n{END}\n"
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{path}: expected the lines {BEGIN} and {END}, between which results go")
    picture = path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n\n{page_part(results, picture.name)}\n\n{END}{after}", encoding="utf-8")
    first = [result for result in results if result.suite == results[0].suite]
    try:
        plot(results_table(first), picture)
    except ModuleNotFoundError:
        return [path]  # matplotlib is in the extra `load`
    return [path, picture]


def plot(table: Table, path: Path) -> None:
    """A PNG: each method's mean score against its trainable parameters, the head's with them.

    The mean is over the tasks that every method has. Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    common = [task for task in table.tasks if all(task in line.scores for line in table.lines)]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_prop_cycle(color=[colormaps["tab20"](number) for number in range(20)])
    means = [(statistics.fmean(line.scores[task][0] for task in common), line) for line in table.lines if common]
    for mean, line in sorted(means, key=lambda pair: -pair[0]):
        axes.plot([line.parameters + line.head], [mean], "o", label=f"{line.title}: {mean:.1f}")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")  # the points lie too close for names
    axes.set(
        xscale="log",
        xlabel="trainable parameters, head included",
        ylabel=f"mean score over {', '.join(TASKS[task].title for task in common) if len(common) < 5 else 'all tasks'}",
    )
    axes.margins(0.1)
    figure.savefig(path, dpi=120)
