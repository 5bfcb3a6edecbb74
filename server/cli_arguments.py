"""Arguments that several verbs share, the client they stand for, and how results are printed.

Completion asks a running server, briefly, and offers nothing where none answers. Imports nothing heavy by itself.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from server.client import AdaKron

COMPLETE_WITHIN_S = 1.0
MOST_OFFERED = 1000


def complete_adapter(context: typer.Context, incomplete: str) -> list[str]:
    """The names of a running server's adapters that begin so."""
    from server.client import AdaKron, ClientError

    try:
        with AdaKron(context.params.get("url"), timeout_s=COMPLETE_WITHIN_S, attempts=1) as client:
            names = [adapter["name"] for adapter in client.page(MOST_OFFERED)["adapters"]]
    except ClientError:
        return []
    return [name for name in names if name.startswith(incomplete)]


Url = Annotated[str | None, typer.Option("--url", help="the server (default: ADAKRON_URL, or http://127.0.0.1:8000)")]
Json = Annotated[bool, typer.Option("--json", help="for programs: what the server answered, as JSON")]
Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_adapter)]
Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", autocompletion=complete_adapter)]


@contextmanager
def connect(url: str | None, sought: str | None = None) -> "Iterator[AdaKron]":
    """The server that --url or ADAKRON_URL names. Raises ConfigurationError.

    Where the adapter `sought` is not there, the error suggests one of those that this key may see.
    """
    from server.client import AdaKron, NotFoundError

    with AdaKron(url) as client:
        try:
            yield client
        except NotFoundError as error:
            near = _near(client, sought) if sought and error.code == "ADAPTER_NOT_FOUND" else None
            if near is None:
                raise
            raise NotFoundError(
                error.status, error.code, error.message, hint=f"did you mean {near!r}?", request_id=error.request_id
            ) from error


def _near(client: "AdaKron", sought: str) -> str | None:
    from server.client import ClientError

    try:
        names = [adapter["name"] for adapter in client.page(MOST_OFFERED)["adapters"]]
    except ClientError:
        return None
    return next(iter(get_close_matches(sought, names, 1)), None)


def print_json(value: Mapping[str, Any], *, indent: int | None = None) -> None:
    """One object: on one line, or indented."""
    print(json.dumps(value, ensure_ascii=False, indent=indent))


def is_watched() -> bool:
    """Whether a person, and not a program, reads what is printed."""
    return sys.stdout.isatty()
