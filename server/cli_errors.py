"""From what went wrong to one sentence with a hint, and an exit code that scripts can tell apart.

0 done    1 refused or failed    2 wrong usage    3 no such adapter or version    4 no server answers    130 interrupted
"""

import os
import sys

FAILED, USAGE, NOT_FOUND, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

_EXTRAS = {
    **dict.fromkeys(("datasets", "accelerate", "sklearn", "scipy"), "train"),
    **dict.fromkeys(("fastapi", "ray", "sqlalchemy", "pydantic", "pydantic_settings", "httpx", "rich"), "serve"),
}


class CommandError(Exception):
    """A verb cannot do it; the message is the sentence to show."""

    def __init__(self, message: str, *, hint: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def complain(message: str, hint: str | None = None) -> None:
    """One line to stderr, whatever is in the message."""
    line = " ".join(message.split())
    print(f"adakron: {line}{f' ({hint})' if hint else ''}", file=sys.stderr)


def explain(error: BaseException) -> int:
    """Say what went wrong, and return the exit code. An error that nobody foresaw is named, and --debug shows it."""
    if isinstance(error, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, CommandError):
        complain(error.message, error.hint)
        return error.code
    if isinstance(error, OSError):
        complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return FAILED
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get(error.name or "")
        complain(f"the package {error.name} is missing", f'pip install "adakron[{extra}]"' if extra else None)
        return FAILED
    return _explain_ours(error)


def _explain_ours(error: BaseException) -> int:
    # Imported here: what has raised one of these has imported it already.
    from server import client
    from server.errors import InvalidRequestError, ServerError

    if isinstance(error, client.ClientError):
        complain(str(error))
        if isinstance(error, client.NotFoundError):
            return NOT_FOUND
        if isinstance(error, client.UnreachableError | client.DeadlineError):
            return UNREACHABLE
        return USAGE if isinstance(error, client.ConfigurationError) else FAILED
    if isinstance(error, ServerError):
        complain(error.message, error.hint)
        return USAGE if isinstance(error, InvalidRequestError) else FAILED
    from adakron.errors import AdaKronError

    if isinstance(error, AdaKronError):
        complain(str(error), error.hint)
        return FAILED
    complain(f"{type(error).__name__}: {error}", "this is a bug; --debug shows where")
    return FAILED
