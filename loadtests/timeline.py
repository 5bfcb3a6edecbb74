"""Which artefact a name may answer with while it is being replaced, rolled back and removed.

A change is *begun* when its request is sent and *settled* when the server has confirmed it for all replicas. Between
the two, old and new are both right; afterwards only the new one is. A change whose reply never came, or that some
replica lags behind, stays unsettled: it takes a later settled change to rule out what was before.

Knows clocks (seconds of one monotonic clock) and hashes; nothing of HTTP.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """An artefact that can be told by its answers: whatever the text, the label is `label`, with a score near 1."""

    sha256: str
    label: str


@dataclass(slots=True)
class Change:
    """signature: what the name answers with from now on, None once it is removed."""

    signature: Signature | None
    begun_s: float
    settled_s: float = math.inf


class Timeline:
    """The changes of one name, in the order they were sent; at first it does not exist."""

    def __init__(self) -> None:
        self._changes = [Change(None, -math.inf, -math.inf)]
        self._versions: dict[str, int] = {}

    def begin(self, signature: Signature | None, now_s: float) -> Change:
        """Note that a request for this change is about to be sent; `settle` the change once it is confirmed."""
        change = Change(signature, now_s)
        self._changes.append(change)
        return change

    def settle(self, change: Change, now_s: float) -> None:
        change.settled_s = now_s

    def abandon(self, change: Change) -> None:
        """The server has refused the change: it never was."""
        self._changes.remove(change)

    def name_version(self, sha256: str, version: int) -> None:
        """The server has said which version these bytes are."""
        self._versions[sha256] = version

    def version(self, sha256: str) -> int | None:
        """The version of these bytes, or None as long as the server has not said it."""
        return self._versions.get(sha256)

    @property
    def current(self) -> Signature | None:
        """What the last change sent makes of the name; None if it removes it."""
        return self._changes[-1].signature

    @property
    def is_settled(self) -> bool:
        """Whether the last change sent is known to have happened."""
        return self._changes[-1].settled_s < math.inf

    def possible(self, started_s: float, ended_s: float) -> list[Signature | None]:
        """All that may rightly answer a request that was sent and answered at these times; None: not found."""
        over = max((i for i, change in enumerate(self._changes) if change.settled_s <= started_s), default=0)
        return [change.signature for change in self._changes[over:] if change.begun_s <= ended_s]
