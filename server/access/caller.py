"""Who the present request is from: which adapters exist for them, and what they have used up.

Set around each request by `server.access.gate`, and carried along by the context of its task, so that no route can
forget to pass it on. Work that no request began, such as probing or following the catalogue, is nobody's and sees
everything. Knows nothing of HTTP.
"""

from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from server.errors import ForbiddenError
from server.names import check_name


class Meter(Protocol):
    """What a key may have classified."""

    async def charge(self, rows: int) -> None:
        """Count rows before they are queued. Raises RateLimitedError, and then none of them is counted."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """key_id: None where no key is asked for; prefix: "acme/" where only the adapters of that tenant exist for them."""

    key_id: str | None = None
    prefix: str | None = None
    meter: Meter | None = None

    def sees(self, name: str) -> bool:
        """Whether an adapter of this name exists for them, if it does at all."""
        return self.prefix is None or name.startswith(self.prefix)

    async def charge(self, rows: int) -> None:
        """`Meter.charge`, where there is a limit."""
        if self.meter is not None:
            await self.meter.charge(rows)


NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Of the request that is being answered."""
    return _current.get()


class acting_for:  # noqa: N801 (read as a phrase: with acting_for(caller))
    """Context manager: what runs inside is done for this caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __enter__(self) -> None:
        self._token = _current.set(self._caller)

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)


def check_own_name(name: str) -> str:
    """A name that the present caller may give to an adapter, whether there is one or not.

    Raises InvalidRequestError (422) for none at all, ForbiddenError (403) for another tenant's.
    """
    check_name(name, param="name")
    caller = current_caller()
    if not caller.sees(name):
        raise ForbiddenError(
            f"this key is for the adapters of {caller.prefix} alone",
            param="name",
            hint=f"register under a name that begins with {caller.prefix}",
        )
    return name


def visible(names: Collection[str]) -> Collection[str]:
    """Those of the names that exist for the present caller."""
    caller = current_caller()
    return names if caller.prefix is None else [name for name in names if caller.sees(name)]
