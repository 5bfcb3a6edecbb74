"""A bar on the terminal while something takes its time; nothing at all where nobody looks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Yields what to call for each one done. On stderr, so that what a verb prints can be piped."""
    with counted(what) as (begin, advance):
        if total is not None:
            begin(total)
        yield advance


@contextmanager
def counted(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """`progress` of something whose number is found out later: yields what to tell it, and what to call for each."""
    if not sys.stderr.isatty():
        yield lambda total: None, lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield (lambda total: bars.reset(task, total=total)), (lambda: bars.advance(task))
