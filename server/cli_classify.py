"""`adakron classify`: texts from the command line, a file or a pipe, through adapters of a running server.

Knows arguments, files and printing; `server.client` asks the server, `server.text_rows` reads and writes rows.
"""

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from server.cli_arguments import Url, complete_adapter, connect
from server.cli_errors import FAILED, USAGE, CommandError, complain
from server.cli_formats import Format

if TYPE_CHECKING:
    from server.client import AdaKron, Item
    from server.client.calls import Options
    from server.text_rows import Row, Writer

_STDIN = Path("-")


def add_commands(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command()(classify)


def classify(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="texts; without any, --input")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", help="NAME or NAME@VERSION; rows may name their own", autocompletion=complete_adapter
        ),
    ] = None,
    source: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="texts to read; - is stdin")] = _STDIN,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="where results go (default: stdout)")
    ] = None,
    form_in: Annotated[
        Format | None, typer.Option("--from", help="format of the input (default: by its name, else a text a line)")
    ] = None,
    form_out: Annotated[
        Format | None, typer.Option("--to", help="format of the output (default: by its name, else text)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same as --to jsonl")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="how many labels `scores` holds")] = 1,
    abstain_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="withhold labels of a lower score; 0 for none (the adapter's own)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where --output ends")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what --output holds")] = False,
    url: Url = None,
) -> int:
    """Classify texts: from the command line, from a file (JSON lines, CSV, a text a line), or from stdin."""
    from server import text_rows

    form_out = Format.jsonl if as_json else form_out or (text_rows.format_of(target) if target else Format.text)
    form_in = form_in or text_rows.format_of(source)
    _check(texts, source, target, resume=resume, overwrite=overwrite)
    with ExitStack() as opened:
        client = opened.enter_context(connect(url))
        rows, total = _texts(texts) if texts else _open_rows(opened, source, form_in)
        done = 0
        if target is not None and resume and target.exists():
            done = _skip_finished(rows, target, form_out)
        writer = text_rows.Writer(_open_target(opened, target, is_continued=done > 0), form_out, is_new=done == 0)
        options: Options = (
            {"top_k": top_k} if abstain_below is None else {"top_k": top_k, "abstain_below": abstain_below}
        )
        failures = _classify(client, rows, writer, adapter, options, None if total is None else total - done)
    if failures:
        complain(f"{len(failures)} texts could not be classified; the first: {failures[0]}")
    return FAILED if failures else 0


def _check(texts: list[str] | None, source: Path, target: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Raises CommandError for what does not go together."""
    if texts and source != _STDIN:
        raise CommandError("texts and --input do not go together", hint="give one of them", code=USAGE)
    if not texts and source == _STDIN and sys.stdin.isatty():
        raise CommandError("nothing to classify", hint="give a text, or --input FILE, or pipe texts in", code=USAGE)
    if resume and (target is None or source == _STDIN):
        raise CommandError("--resume needs --input FILE and --output FILE", code=USAGE)
    if target is not None and target.exists() and not (resume or overwrite):
        raise CommandError(
            f"{target} is there already", hint="--resume goes on where it ends, --overwrite replaces it", code=USAGE
        )


def _texts(texts: list[str]) -> "tuple[Iterator[Row], int | None]":
    return iter([{"text": text} for text in texts]), len(texts)


def _open_rows(opened: ExitStack, source: Path, form: Format) -> "tuple[Iterator[Row], int | None]":
    """The rows of a file or of stdin, and how many they are, where that can be known."""
    from server import text_rows

    if source == _STDIN:
        return text_rows.read_rows(sys.stdin, form, "stdin"), None
    # utf-8-sig: what spreadsheets write begins with a mark.
    file = opened.enter_context(source.open(encoding="utf-8-sig", newline="" if form == "csv" else None))
    return text_rows.read_rows(file, form, str(source)), text_rows.count_rows(source, form)


def _skip_finished(rows: "Iterator[Row]", target: Path, form: Format) -> int:
    """Cut off what was not written whole, read past the rows that were; how many those are. Raises CommandError."""
    from server import text_rows

    if form == "text":
        raise CommandError("--resume needs an --output of JSON lines or CSV", code=USAGE)
    found = text_rows.finished(target, form)
    if found.rows:
        last = next(islice(rows, found.rows - 1, None), None)
        if last is None or found.last is None or not text_rows.comes_from(found.last, last):
            raise CommandError(f"{target} was not made from this input", hint="--overwrite begins anew", code=USAGE)
    with target.open("r+b") as file:
        file.truncate(found.size_bytes)
    return found.rows


def _open_target(opened: ExitStack, target: Path | None, *, is_continued: bool) -> TextIO:
    if target is None:
        return sys.stdout
    # A line at a time, so that what is there after an interruption is whole but for the last.
    file = target.open("a" if is_continued else "w", 1, "utf-8", newline="")
    return opened.enter_context(file)


def _classify(
    client: "AdaKron",
    rows: "Iterator[Row]",
    writer: "Writer",
    adapter: str | None,
    options: "Options",
    total: int | None,
) -> list[str]:
    """Everything, in order; the complaint of each row that failed."""
    from server import text_rows
    from server.cli_progress import progress
    from server.client import RowFailure

    waiting: deque[Row] = deque()

    def items() -> "Iterator[Item]":
        for row in rows:
            item = text_rows.item_of(row)
            if item.adapter is None and adapter is None:
                raise CommandError(f"no adapter for {row['text'][:40]!r}", hint="name one with --adapter", code=USAGE)
            waiting.append(row)
            yield item

    failures: list[str] = []
    with progress("texts", total) as advance:
        for outcome in client.stream(items(), adapter, **options):
            writer.write(waiting.popleft(), outcome)
            if isinstance(outcome, RowFailure):
                failures.append(str(outcome))
            advance()
    return failures
