"""Registering many artefacts in one request: staged as they arrive, validated, proved and committed a group at a time.

    parts -> staged files -> groups of 16: validate and prove each, commit those that passed, tell the replicas once

Each artefact succeeds or fails by itself. What the time does not suffice for is said to be untried, so that a client
sends just that again. Knows nothing of HTTP beyond the parts of a body, and nothing of Ray.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from adakron.errors import AdaKronError
from server.access.caller import check_own_name
from server.blobs import StagedBlob
from server.errors import NotReadyError, ServerError
from server.multipart import PartBegan, PartEnded, PartEvent
from server.records import Change, Origin
from server.registry import Candidate, Registry

MAX_BULK_ARTEFACTS = 1000
MAX_BULK_BYTES = 4 * 2**30
GROUP = 16
# Ray gives up on a request after 25 s, or after what its header asks for: a group that begins by now has ended by then.
BEGIN_WITHIN_S = 15.0
ENDS_WITHIN_S = 10.0
MAX_BEGIN_WITHIN_S = 600.0
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """What became of one artefact: a change, or why there is none."""

    name: str
    outcome: Change | AdaKronError | ServerError


@dataclass(frozen=True, slots=True)
class BulkResult:
    """Every artefact in the order sent. lagging: replicas that do not serve all of it yet; they will."""

    items: tuple[Item, ...]
    lagging: tuple[str, ...]


class Bulk:
    """One such request. Use once, on the registry's event loop."""

    def __init__(
        self, registry: Registry, *, activate: bool, origin: Origin, begin_within_s: float = BEGIN_WITHIN_S
    ) -> None:
        self._registry = registry
        self._activate = activate
        self._origin = origin
        self._until_s = time.monotonic() + begin_within_s
        self._outcomes: list[Change | AdaKronError | ServerError | None] = []
        self._names: list[str] = []
        self._group: list[tuple[int, Candidate]] = []
        self._lagging: set[str] = set()

    async def register(self, parts: AsyncIterator[PartEvent]) -> BulkResult:
        """Register every part under its name. Raises what reading the parts raises; what was committed stays so."""
        staged: StagedBlob | None = None
        buffer = bytearray()
        try:
            async for event in parts:
                if isinstance(event, PartBegan):
                    staged = await self._begin(event.name)
                    buffer.clear()
                elif isinstance(event, PartEnded):
                    if staged is not None:
                        staged = await self._write(staged, bytes(buffer))
                    if staged is not None:
                        candidate = Candidate(self._names[-1], staged)
                        self._group.append((len(self._names) - 1, candidate))
                        staged = None
                    if len(self._group) == GROUP:
                        await self._flush()
                elif staged is not None:
                    buffer += event
                    if len(buffer) >= _WRITE_BYTES:
                        staged = await self._write(staged, bytes(buffer))
                        buffer.clear()
            await self._flush()
        finally:
            for _, candidate in self._group:
                candidate.staged.close()
            if staged is not None:
                staged.close()
        items = [Item(name, outcome) for name, outcome in zip(self._names, self._outcomes, strict=True) if outcome]
        return BulkResult(tuple(items), tuple(sorted(self._lagging)))

    async def _begin(self, name: str) -> StagedBlob | None:
        """A file for the part, or None where it fails already: its bytes are read past."""
        self._names.append(name)
        self._outcomes.append(None)
        if time.monotonic() > self._until_s:
            self._outcomes[-1] = _untried()
            return None
        try:
            check_own_name(name)
            return await self._registry.stage()
        except ServerError as error:
            self._outcomes[-1] = error
            return None

    async def _write(self, staged: StagedBlob, data: bytes) -> StagedBlob | None:
        try:
            await asyncio.to_thread(staged.write, data)
        except ServerError as error:
            staged.close()
            self._outcomes[-1] = error
            return None
        return staged

    async def _flush(self) -> None:
        group, self._group = self._group, []
        if not group:
            return
        try:
            if time.monotonic() > self._until_s:
                outcomes: list[Change | AdaKronError | ServerError] = [_untried() for _ in group]
            else:
                candidates = [candidate for _, candidate in group]
                outcomes, lagging = await self._registry.put_group(
                    candidates, activate=self._activate, origin=self._origin
                )
                self._lagging.update(lagging)
        finally:
            for _, candidate in group:
                candidate.staged.close()
        for (place, _), outcome in zip(group, outcomes, strict=True):
            self._outcomes[place] = outcome


def begin_within_s(asked: str | None) -> float:
    """How long groups may begin, where the client asked for that many seconds in all; a header that is none is none."""
    try:
        seconds = float(asked or "")
    except ValueError:
        return BEGIN_WITHIN_S
    # Also where the number is none: every comparison with NaN is false.
    return min(seconds - ENDS_WITHIN_S, MAX_BEGIN_WITHIN_S) if seconds > ENDS_WITHIN_S else BEGIN_WITHIN_S


def _untried() -> NotReadyError:
    return NotReadyError(
        "there was no time left to try this one; nothing was registered",
        hint="send it again in another request",
        retry_after_s=1,
    )
