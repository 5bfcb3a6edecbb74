"""The command `adakron`: `serve` here, verbs without a server from `adakron.cli`, others from `server.cli_*`.

Knows argparse; each verb's work is elsewhere and imported when it is asked for, so that --help is quick.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adakron.cli import add_commands
from server import cli_adapters, cli_keys
from server.settings import ENV_PREFIX, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns its exit code; argparse exits with 2 where it does not understand."""
    parser = argparse.ArgumentParser(
        prog="adakron", description="AdaKron text classifiers: train, check, serve and manage them."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    serve = verbs.add_parser(
        "serve",
        help="serve adapters over HTTP",
        description="Serve adapters over HTTP until Ctrl-C or SIGTERM.",
        epilog=f"Every flag has a variable: --state-dir is {ENV_PREFIX}STATE_DIR. Flags win.",
        argument_default=argparse.SUPPRESS,
    )
    for name, field in Settings.model_fields.items():
        _add_flag(serve, name, field)
    serve.set_defaults(run=_serve)
    add_commands(verbs)
    cli_adapters.add_commands(verbs)
    cli_keys.add_commands(verbs)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    text = (field.description or "").replace("%", "%%")
    if field.annotation is bool:
        parser.add_argument(flag, dest=name, action="store_true", help=text)
        return
    if "default" not in text and field.default is not None:
        text += f" (default: {field.default})"
    options: dict[str, Any] = {"dest": name, "help": text, "metavar": name.rpartition("_")[2].upper()}
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        options = {"dest": name, "help": text, "choices": choices}
    parser.add_argument(flag, **options)


def _serve(options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        message = problem["msg"].removeprefix("Value error, ")
        print(f"adakron: --{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()}): {message}", file=sys.stderr)
        return 2
    from server.launch import serve  # seconds of imports that --help need not wait for

    return serve(settings)
