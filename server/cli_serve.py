"""`adakron serve`: one flag for every setting. Knows `server.settings`; `server.launch` does the work."""

import argparse
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from server.cli_errors import USAGE, CommandError
from server.settings import ENV_PREFIX, Settings


def add_commands(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to a command line."""
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


def settings_from(given: dict[str, Any]) -> Settings:
    """Settings with these instead of the variables. Raises CommandError, which names flag and variable."""
    try:
        return Settings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        message = problem["msg"].removeprefix("Value error, ")
        flag = f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"
        raise CommandError(f"{flag}: {message}", code=USAGE) from error


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
    settings = settings_from({name: value for name, value in vars(options).items() if name in Settings.model_fields})
    from server.launch import serve  # seconds of imports that --help need not wait for

    return serve(settings)
