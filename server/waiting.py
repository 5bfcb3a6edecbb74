"""Rows whose adapter is not on the device, by adapter: beside the queue, so that a miss holds up nobody.

Adapters are loaded in the order in which their first row came. An adapter stays here while it is being loaded, so that
rows which come meanwhile wait for the same load. Time is whatever the caller counts. Not safe for threads. Knows
nothing of what waits in it.
"""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingForAdapters(Generic[T]):
    """See the module's text."""

    def __init__(self) -> None:
        self._rows: dict[str, list[T]] = {}
        self._unloaded: deque[tuple[str, int]] = deque()

    @property
    def since(self) -> int | None:
        """When the first row came that waits for an adapter which nobody loads yet; None where there is none."""
        return self._unloaded[0][1] if self._unloaded else None

    def add(self, key: str, row: T, now: int) -> None:
        """One more row that waits for the adapter `key`."""
        if key not in self._rows:
            self._rows[key] = []
            self._unloaded.append((key, now))
        self._rows[key].append(row)

    def next(self) -> tuple[str, list[T]]:
        """The adapter to load next, and the rows that wait for it so far. Ends with a `take` of that adapter."""
        key, _ = self._unloaded.popleft()
        return key, list(self._rows[key])

    def take(self, key: str) -> list[T]:
        """The rows that waited for `key`, whose load is over; a row that comes later asks for another one."""
        return self._rows.pop(key)

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()
        self._unloaded.clear()
