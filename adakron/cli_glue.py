"""`adakron glue`: the methods of the paper's table compared on GLUE. Knows arguments and printing.

`adakron.training.glue` does the work, and is imported when it is asked for.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from adakron.training.glue.suites import Suite

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SUITE_NAMES = ("quick", "full", "whole", "paper-bert", "paper-roberta")


def add_glue(subparsers: Verbs) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "glue",
        help="compare fine-tuning methods on GLUE",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train every method of a suite on every task, one result a line of --out, and print the table.\n"
        "Finished runs are found in --out and not run again: the same command goes on where it was stopped.",
    )
    parser.add_argument("--suite", choices=SUITE_NAMES, default="quick", help="what to run (quick)")
    parser.add_argument("--methods", metavar="NAMES", help="with commas; 'all' is every method of the comparison")
    parser.add_argument("--tasks", metavar="NAMES", help="with commas, of mnli qnli sst2 qqp mrpc cola rte stsb")
    parser.add_argument("--max-rows", type=_count, metavar="N", help="training rows of a task at most; 0: all")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="of every run")
    parser.add_argument("--seeds", type=_numbers, metavar="N,N", default=(), help="with commas (13)")
    parser.add_argument(
        "--rates", type=_positive, metavar="N", help="learning rates tried for each method on each task, 1 to 5"
    )
    parser.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="runs at a time, for a GPU that one leaves idle (1)"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of the matrix products (the faster one of the machine)"
    )
    parser.add_argument("--backbone", metavar="NAME", help="hub id or folder, instead of the suite's")
    parser.add_argument(
        "--data", metavar="FOLDER", help="folder with one folder a task ($ADAKRON_DATA_DIR; without it, the hub)"
    )
    parser.add_argument("--out", metavar="FILE", help="results, one a line of JSON (runs/glue-SUITE.jsonl)")
    parser.add_argument("--page", metavar="FILE", help="write the table into this Markdown page, a picture beside it")
    parser.add_argument("--report", action="store_true", help="train nothing: the table of what --out holds so far")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and stop")
    parser.set_defaults(run=_glue)


def _glue(parsed: argparse.Namespace) -> int:
    from adakron.cli import quiet_libraries
    from adakron.errors import DataError
    from adakron.training.glue.report import conditions, write_page
    from adakron.training.glue.results import ResultFile
    from adakron.training.glue.runner import describe, run_suite
    from adakron.training.glue.table import make_table, plain

    quiet_libraries()
    suite = _suite(parsed)
    print(f"{suite.name}: {suite.about}")
    if parsed.dry_run:
        print("\n".join(describe(run) for run in suite.plan()))
        return 0
    out = Path(parsed.out or f"runs/glue-{parsed.suite}.jsonl")
    if parsed.report:
        results = [
            result
            for result in ResultFile(out).read()
            if result.suite == suite.name
            and result.method in suite.methods
            and result.task in suite.tasks
            and (not parsed.seeds or result.seed in parsed.seeds)
        ]
        if not results:
            raise DataError(f"{out}: no such results of the suite {suite.name}", hint="leave --report out to run it")
    else:
        source = parsed.data or os.environ.get("ADAKRON_DATA_DIR") or None
        results = run_suite(suite, source, out, lambda line: print(line, flush=True), parsed.jobs, parsed.dtype)
    print(plain(make_table(results, suite.tasks, suite.methods), f"{suite.name}: {conditions(results)}"))
    if parsed.page:
        for path in write_page(Path(parsed.page), ResultFile(out).read()):
            print(f"wrote {path}")
    return 0


def _suite(parsed: argparse.Namespace) -> "Suite":
    from adakron.training.glue.suites import SUITES, changed
    from adakron.training.methods import METHODS

    methods = tuple(METHODS) if parsed.methods == "all" else _names(parsed.methods)
    return changed(
        SUITES[parsed.suite],
        backbone=parsed.backbone,
        methods=methods,
        tasks=_names(parsed.tasks),
        max_rows=parsed.max_rows,
        seeds=parsed.seeds,
        attempts=parsed.rates,
        epochs=parsed.epochs,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; found {number}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more; found {number}")
    return number
