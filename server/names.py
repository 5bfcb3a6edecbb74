"""How adapters are called: the grammar of names and of references.

    name        one or two segments, "sst2" or "acme/spam"
    segment     [a-z0-9][a-z0-9._-]{0,63}, without ".." or "--", and none of RESERVED_SEGMENTS
    reference   a name, or name@version: "acme/spam@3"

Knows nothing of which adapters exist.
"""

import re
from typing import NamedTuple

from server.errors import InvalidRequestError, quoted

SEGMENT = r"[a-z0-9][a-z0-9._\-]{0,63}"
NAME_PATTERN = rf"{SEGMENT}(/{SEGMENT})?"
REFERENCE_PATTERN = rf"{NAME_PATTERN}(@[1-9][0-9]{{0,8}})?"

MAX_NAME_CHARACTERS = 64 + 1 + 64
MAX_REFERENCE_CHARACTERS = MAX_NAME_CHARACTERS + 1 + 9

# Each of these is, or may become, the last part of a route below an adapter's name.
RESERVED_SEGMENTS = frozenset(
    {
        "activate",
        "bulk",
        "docs",
        "health",
        "info",
        "openapi.json",
        "predict",
        "shadow",
        "split",
        "stats",
        "versions",
    }
)

_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

_NAME_HINT = (
    "a name is one or two segments such as 'sst2' or 'acme/spam': lower-case letters, digits, '.', '_' and '-', "
    "beginning with a letter or digit, at most 64 characters each, without '..' or '--'"
)


class Reference(NamedTuple):
    """A name, and the version it is pinned to; None means the active one."""

    name: str
    version: int | None


def check_name(name: str, *, param: str | None = None) -> str:
    """Return `name` unchanged. Raises InvalidRequestError (422) where the grammar does not allow it."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InvalidRequestError(f"not an adapter name: {quoted(name)}", param=param, hint=_NAME_HINT)
    for segment in name.split("/"):
        if segment in RESERVED_SEGMENTS:
            raise InvalidRequestError(
                f"{quoted(segment)} is reserved and cannot be part of an adapter name",
                param=param,
                hint=f"reserved are {', '.join(sorted(RESERVED_SEGMENTS))}",
            )
    return name


def parse_reference(reference: str, *, param: str | None = None) -> Reference:
    """Split "name" or "name@version". Raises InvalidRequestError (422) where the grammar does not allow it."""
    name, at, version = reference.partition("@")
    check_name(name, param=param)
    if not at:
        return Reference(name, None)
    if not _VERSION.fullmatch(version):
        raise InvalidRequestError(
            f"not a version: {quoted(version)}", param=param, hint="pin a version as in 'sst2@3', counting from 1"
        )
    return Reference(name, int(version))
