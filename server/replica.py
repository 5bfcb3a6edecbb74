"""One replica's copy of the catalogue: which adapter a name means, and that its weights are in the engine.

    catalogue + blobs --sync--> engine slots, then one new table          request --resolve--> a leased version

The table is replaced by assigning one reference, after everything it needs is loaded and before anything it no longer
needs is removed: a request finds the old version or the new one. Told of a change by `apply`, asked by a request for
a name it does not know, and polling besides, it ends up where the catalogue is whatever messages were lost.
Knows nothing of HTTP or Ray.
"""

import asyncio
import difflib
import logging
import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from adakron import Adapter
from adakron.errors import AdaKronError, UnknownAdapterError
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import AdapterNotFoundError, NotReadyError, ServerError, VersionNotFoundError
from server.records import EMPTY, Snapshot
from server.service import Resolved

POLL_INTERVAL_S = 1.5
BROKEN_RETRY_S = 30.0
_MOST_CANDIDATES = 256

log = logging.getLogger(__name__)


class AdapterEngine(Protocol):
    """What of `adakron.Engine` a replica needs; keys are sha256."""

    def add(self, key: str, adapter: Adapter) -> None: ...
    def remove(self, key: str) -> int: ...
    def lease(self, key: str | None) -> Any: ...
    def check(self, adapter: Adapter) -> Any: ...
    def info(self) -> Any: ...


class Applied(NamedTuple):
    """Answer to `apply`: the generation this replica serves, and the bytes that reaching it freed in the engine."""

    replica_id: str
    generation: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What one replica says of itself.

    adapter_bytes  held by the engine on `device`
    broken         sha256 -> why it could not be loaded
    requests       name -> calls resolved since the replica started
    """

    replica_id: str
    generation: int
    device: str
    adapter_bytes: int
    broken: dict[str, str]
    requests: dict[str, int]


class _Freed(NamedTuple):
    before: int
    after: int
    size_bytes: int


class Replica:
    """Implements `server.service.Resolver`. Methods that await belong to one event loop; `load` blocks.

    replica_id  this replica's name in answers and metrics
    """

    def __init__(
        self,
        engine: AdapterEngine,
        catalogue: Catalogue,
        blobs: BlobStore,
        *,
        replica_id: str,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self.replica_id = replica_id
        self._engine = engine
        self._catalogue = catalogue
        self._blobs = blobs
        self._poll_interval_s = poll_interval_s
        self._table: Snapshot = EMPTY
        self._resident: set[str] = set()
        self._broken: dict[str, str] = {}
        self._retry_at_s = 0.0
        self._freed: deque[_Freed] = deque(maxlen=64)
        self._requests: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self._next_sync: asyncio.Task[None] | None = None
        self._poll: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """Of the table that requests are resolved with."""
        return self._table.generation

    def names(self) -> tuple[str, ...]:
        """Names that answer without a version, in order."""
        return tuple(name for name, entry in self._table.adapters.items() if entry.active is not None)

    def load(self) -> None:
        """Load everything committed so far; before the event loop serves. Raises StorageUnavailableError."""
        self._sync()

    async def start(self) -> None:
        """Begin to poll the catalogue."""
        self._poll = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """End the polling."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def sync(self) -> None:
        """Catch up with all that was committed before this call. Raises StorageUnavailableError."""
        if self._next_sync is None:
            self._next_sync = asyncio.create_task(self._sync_in_turn())
        await asyncio.shield(self._next_sync)

    async def apply(self, generation: int) -> Applied:
        """Catch up to `generation`. The one returned is lower if what changed at it cannot be loaded here."""
        if self.generation < generation:
            await self.sync()
        freed = sum(f.size_bytes for f in self._freed if f.before < generation <= f.after)
        return Applied(self.replica_id, self._loaded_generation(generation), freed)

    async def prove(self, sha256: str) -> dict[str, Any]:
        """Run a stored artefact on this engine without serving it: {"no_effect": bool, "examples": int}.

        Raises the FormatError family, ConfigError, BaseMismatchError, GoldenMismatchError, BankFullError,
        StorageUnavailableError.
        """
        admission = await asyncio.to_thread(self._check, sha256)
        return {"no_effect": admission.no_effect, "examples": admission.examples}

    async def resolve(self, name: str, version: int | None, min_generation: int | None) -> Resolved:
        """Lease the version that a reference means; whoever calls releases the lease.

        Raises AdapterNotFoundError, VersionNotFoundError; NotReadyError while `min_generation` is not reached or the
        version cannot be loaded here.
        """
        if not self._knows(name, version) or self.generation < (min_generation or 0):
            await self.sync()  # it may have been committed a moment ago
        if self.generation < (min_generation or 0):
            raise NotReadyError(
                f"this replica serves generation {self.generation}; {min_generation} was asked for",
                param="min_generation",
                retry_after_s=1,
            )
        while True:
            table = self._table
            number, sha256 = self._look_up(table, name, version)
            try:
                lease = self._engine.lease(sha256)
            except UnknownAdapterError as error:
                if self._table is not table:  # replaced between looking up and leasing: look again
                    continue
                reason = self._broken.get(sha256, "it is not loaded")
                raise NotReadyError(
                    f"version {number} of {name} cannot be served: {reason}",
                    hint="activate another version, or upload this one again",
                    retry_after_s=2,
                ) from error
            self._requests[name] += 1
            return Resolved(name, number, sha256, lease)

    def status(self) -> ReplicaStatus:
        """For the admin listing."""
        info = self._engine.info()
        return ReplicaStatus(
            self.replica_id,
            self.generation,
            str(info.device),
            info.adapter_bytes,
            dict(self._broken),
            dict(self._requests),
        )

    def _knows(self, name: str, version: int | None) -> bool:
        entry = self._table.adapters.get(name)
        if entry is None:
            return False
        return entry.active is not None if version is None else version in entry.versions

    def _look_up(self, table: Snapshot, name: str, version: int | None) -> tuple[int, str]:
        entry = table.adapters.get(name)
        if entry is None:
            raise AdapterNotFoundError(f"no adapter {name!r}", hint=_did_you_mean(name, table.adapters))
        kept = ", ".join(f"{name}@{number}" for number in list(entry.versions)[-4:])
        if version is None and entry.active is None:
            raise AdapterNotFoundError(f"no version of {name!r} is active", hint=f"activate one, or name it: {kept}")
        number = entry.active if version is None else version
        if number is None or number not in entry.versions:
            raise VersionNotFoundError(
                f"adapter {name!r} has no version {number}", hint=f"kept versions end with: {kept}"
            )
        return number, entry.versions[number].sha256

    def _loaded_generation(self, generation: int) -> int:
        table = self._table
        changed = [entry for entry in table.adapters.values() if entry.generation == generation]
        unloaded = any(row.sha256 in self._broken for entry in changed for row in entry.versions.values())
        return min(table.generation, generation - 1) if unloaded else table.generation

    async def _sync_in_turn(self) -> None:
        async with self._lock:
            # From here on the catalogue is read: later callers may know of a later commit and need a sync of their own.
            self._next_sync = None
            await asyncio.to_thread(self._sync)

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            try:
                await self.sync()
            except Exception as error:
                # Whatever the store does, requests are answered from memory, and the next round tries again.
                log.warning("replica %s cannot read the catalogue: %s", self.replica_id, error)

    def _sync(self) -> None:
        is_retry_due = bool(self._broken) and time.monotonic() >= self._retry_at_s
        if self._catalogue.generation() == self._table.generation and not is_retry_due:
            return
        changes = self._catalogue.changes_since(self._table.generation)
        # A catalogue restored from a backup may be behind what was served: then all of it is new.
        is_ahead = changes.generation >= self._table.generation
        table = self._table.after(changes) if is_ahead else self._catalogue.snapshot()
        needed = table.sha256s()
        broken = {}
        for sha256 in sorted(needed - self._resident):
            try:
                self._load_blob(sha256)
            except Exception as error:  # a loader may raise anything, and the other adapters must not suffer
                broken[sha256] = _reason(error)
                log.error("adapter %s cannot be loaded: %s", sha256[:12], broken[sha256])
        before = self._table.generation
        self._broken = broken
        self._retry_at_s = time.monotonic() + BROKEN_RETRY_S
        self._table = table
        freed_bytes = 0
        for sha256 in self._resident - needed:
            freed_bytes += self._engine.remove(sha256)
        self._resident &= needed
        self._freed.append(_Freed(before, table.generation, freed_bytes))

    def _load_blob(self, sha256: str) -> None:
        self._engine.add(sha256, Adapter.from_bytes(self._blobs.read(sha256)))
        self._resident.add(sha256)

    def _check(self, sha256: str) -> Any:
        return self._engine.check(Adapter.from_bytes(self._blobs.read(sha256)))


def _reason(error: Exception) -> str:
    # Only errors of our own are known to hold no path and no content.
    return str(error)[:300] if isinstance(error, AdaKronError | ServerError) else type(error).__name__


def _did_you_mean(name: str, known: Collection[str]) -> str:
    if not known:
        return "no adapter is registered yet: PUT a safetensors file to /v1/adapters/{name}"
    # Comparing costs time for each name, and anybody may ask: look at a bounded number of plausible ones.
    plausible = [other for other in known if abs(len(other) - len(name)) <= 3 and other[:1] == name[:1]]
    close = difflib.get_close_matches(name, plausible[:_MOST_CANDIDATES], n=1)
    return f"did you mean {close[0]!r}?" if close else "GET /v1/adapters lists the names"
