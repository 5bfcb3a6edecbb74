"""How adapters are called: the grammar of names and of references.

    name        one or two segments, "sst2" or "acme/spam"
    segment     [a-z0-9][a-z0-9._-]{0,63}, without ".." or "--", and none of RESERVED_SEGMENTS
    reference   a name, name@version or name@sha256:content: "acme/spam@3", "sst2@sha256:9f2c.."

Knows nothing of which adapters exist.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from server.errors import InvalidRequestError, quoted

SEGMENT = r"[a-z0-9][a-z0-9._\-]{0,63}"
NAME_PATTERN = rf"{SEGMENT}(/{SEGMENT})?"
REFERENCE_PATTERN = rf"{NAME_PATTERN}(@([1-9][0-9]{{0,8}}|sha256:[0-9a-f]{{64}}))?"

MAX_NAME_CHARACTERS = 64 + 1 + 64
MAX_REFERENCE_CHARACTERS = MAX_NAME_CHARACTERS + 1 + len("sha256:") + 64

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
_CONTENT = re.compile(r"sha256:([0-9a-f]{64})")

_NAME_HINT = (
    "a name is one or two segments such as 'sst2' or 'acme/spam': lower-case letters, digits, '.', '_' and '-', "
    "beginning with a letter or digit, at most 64 characters each, without '..' or '--'"
)


class Reference(NamedTuple):
    """A name, and the version or the content it is pinned to; without either, whatever the bare name answers with."""

    name: str
    version: int | None = None
    sha256: str | None = None

    @property
    def is_pinned(self) -> bool:
        return self.version is not None or self.sha256 is not None


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


@lru_cache(maxsize=4096)
def parse_reference(reference: str, *, param: str | None = None) -> Reference:
    """Split "name", "name@version" or "name@sha256:content". Raises InvalidRequestError (422) for anything else."""
    name, at, version = reference.partition("@")
    check_name(name, param=param)
    if not at:
        return Reference(name)
    if content := _CONTENT.fullmatch(version):
        return Reference(name, sha256=content[1])
    if not _VERSION.fullmatch(version):
        raise InvalidRequestError(
            f"not a version: {quoted(version)}",
            param=param,
            hint="pin a version as in 'sst2@3', counting from 1, or content as in 'sst2@sha256:' and 64 hex digits",
        )
    return Reference(name, int(version))


def to_segment(name: str) -> str:
    """The name as one segment of a path, "acme--spam": for clients that neither quote a slash nor want one."""
    return name.replace("/", "--")


def from_segment(segment: str) -> str:
    """The name, or reference, that `to_segment` wrote; no name has "--" of its own."""
    return segment.replace("--", "/", 1)
