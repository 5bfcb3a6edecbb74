"""The command `adakron`: its verbs brought together, and one way to fail for all of them.

    serve                                                         `server.cli_serve`
    classify                                                      `server.cli_classify`
    push list show activate rollback split rm export sync         `server.cli_adapters`
    stats                                                         `server.cli_stats`
    keys                                                          `server.cli_keys`
    train eval calibrate inspect zoo import to-peft               `adakron.cli`, which needs no server
    train-many                                                    `adakron.cli_many`, which needs none either
    glue                                                          `adakron.cli_glue`, which needs none either
    keys create list revoke                                       `server.cli_keys`
    backup restore                                                `server.cli_backup`
    doctor, bench                                                 `server.cli_doctor`, `server.cli_bench`

Each verb's work is elsewhere and imported when it is asked for, so that --help is quick. Exit codes are those of
`server.cli_errors`.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from server import cli_adapters, cli_backup, cli_bench, cli_classify, cli_doctor, cli_stats
from server.cli_bench import PASSED_ON
from server.cli_errors import INTERRUPTED, USAGE, CommandError, complain, explain

# Verbs whose flags come from data, settings or a recipe, are argparse's: module, function that adds it, what it does.
_ARGPARSE = {
    "serve": ("server.cli_serve", "add_commands", "Serve adapters over HTTP."),
    "train": ("adakron.cli", "add_train", "Train an adapter on labelled text."),
    "train-many": ("adakron.cli_many", "add_train_many", "Train several adapters side by side on one backbone."),
    "eval": ("adakron.cli", "add_eval", "Score an adapter on labelled text."),
    "glue": ("adakron.cli_glue", "add_glue", "Compare fine-tuning methods on GLUE."),
    "calibrate": ("adakron.cli", "add_calibrate", "Fit an adapter's temperature on labelled text."),
    "keys": ("server.cli_keys", "add_commands", "Make, list and revoke API keys."),
    "inspect": ("adakron.cli", "add_inspect", "Say what an artefact is, or why it is none."),
    "zoo": ("adakron.cli", "add_zoo", "Write the cards and the table of a folder of adapters."),
    "import": ("adakron.cli", "add_import", "Make an artefact of a checkpoint or of a folder in PEFT's layout."),
    "to-peft": ("adakron.cli", "add_to_peft", "Write an artefact as a folder in PEFT's layout."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns its exit code; whatever goes wrong is told in one line."""
    words, is_debugging = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(_app())(words, prog_name="adakron", standalone_mode=False)
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        if is_debugging:
            traceback.print_exc()
        if hasattr(error, "format_message"):  # typer's own, which it has no public name for
            return _explain_usage(error)
        return explain(error)
    return code if isinstance(code, int) else 0


def _app() -> typer.Typer:
    app = typer.Typer(
        help="AdaKron text classifiers: train, check, serve and manage them.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such adapter, 4 no server answers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    _mount(app, "serve")
    cli_classify.add_commands(app)
    cli_adapters.add_commands(app)
    cli_stats.add_commands(app)
    for verb in [verb for verb in _ARGPARSE if verb != "serve"]:
        _mount(app, verb)
    cli_backup.add_commands(app)
    cli_doctor.add_commands(app)
    cli_bench.add_commands(app)
    return app


def _mount(app: typer.Typer, verb: str) -> None:
    module, function, text = _ARGPARSE[verb]

    @app.command(verb, help=text, context_settings={**PASSED_ON, "help_option_names": []}, add_help_option=False)
    def run(context: typer.Context) -> int:
        parser = _Parser(prog="adakron")
        getattr(import_module(module), function)(parser.add_subparsers(metavar="VERB", required=True))
        options = parser.parse_args([verb, *context.args])
        code: int = options.run(options)
        return code


def _common(
    debug: Annotated[bool, typer.Option("--debug", help="show where an error comes from; may stand anywhere")] = False,
) -> None:
    """Nothing to do: `main` has taken --debug out; here it is for --help."""


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without --debug, and whether it was among them; behind `--` it is a text like any other."""
    end = words.index("--") if "--" in words else len(words)
    ours = [word for word in words[:end] if word != "--debug"]
    return [*ours, *words[end:]], len(ours) < end


def _explain_usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is not None and message == context.get_help():  # what it raises where no arguments are given
        print(message, file=sys.stderr)
    else:
        path = "adakron" if context is None else context.command_path
        complain(message.rstrip("."), f"`{path} --help` shows how")
    return USAGE


class _Parser(argparse.ArgumentParser):
    """Complains as every other verb does."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, hint=f"`{self.prog} --help` shows how", code=USAGE)
