"""What of `adakron.Engine` serving needs, so that whatever behaves so can be served, a stub too.

Knows protocols alone.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from adakron import AdapterConfig, Result, Row, RowError


class Lease(Protocol):
    """One user of one adapter in the engine. Rows are queued in lanes by `key`; `release` may come from any thread.

    Rows can be encoded once `is_read`; from then on `config` is known, but for the bare backbone's.
    """

    @property
    def key(self) -> str | None: ...
    @property
    def is_read(self) -> bool: ...
    @property
    def config(self) -> AdapterConfig | None: ...
    def release(self) -> None: ...


class Encoded(Protocol):
    """A tokenised row, as the engine likes it. `n_tokens` is its cost."""

    @property
    def n_tokens(self) -> int: ...


class ClassifyEngine(Protocol):
    """What of `adakron.Engine` serving needs. Leases and encoded rows are its own: passed on, not looked into."""

    def encode(self, rows: Sequence[Row], leases: Sequence[Any]) -> Sequence[Encoded | RowError]:
        """Tokenise; one outcome a row, in order."""
        ...

    @property
    def is_crowded(self) -> bool:
        """Whether bringing another adapter to the device pushes one off it."""
        ...

    def pin(self, lease: Any, rows: int = 1, *, again: bool = False) -> bool:
        """Hold the slots of an adapter that is on the device for rows; False where it is not. Does not block."""
        ...

    def fetch(self, lease: Any) -> None:
        """Bring an adapter to the device and pin it for one row; blocks. Raises where it cannot be had."""
        ...

    def unpin(self, lease: Any) -> None:
        """Give a pin back. Does not block."""
        ...

    def run(self, rows: Sequence[Any]) -> Sequence[Result | RowError]:
        """One batch of pinned rows; one outcome a row, in order. Called from one thread only."""
        ...
