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
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from adakron import Adapter, AdapterConfig
from adakron.errors import AdaKronError, UnknownAdapterError
from server.answers import Identity
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import AdapterNotFoundError, NotReadyError, ServerError, VersionNotFoundError
from server.names import Reference
from server.records import EMPTY, Entry, Snapshot
from server.service import Resolved

POLL_INTERVAL_S = 1.5
BROKEN_RETRY_S = 30.0
_MOST_CANDIDATES = 256
_NO_KEY = ""  # a route key, so that a name under a split is described alike each time

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


class Described(NamedTuple):
    """One version that a reference means: whose weights, which versions of the name are kept, and what it is."""

    name: str
    version: int
    sha256: str
    kept: tuple[int, ...]
    config: AdapterConfig

    @property
    def identity(self) -> Identity:
        """As answers name it."""
        return {"adapter": self.name, "version": self.version, "sha256": self.sha256}


class Use(NamedTuple):
    """How often a name was called, and when last, in seconds since 1970."""

    requests: int
    last_s: float


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What one replica says of itself.

    adapter_bytes  held by the engine on `device`, of all adapters
    broken         sha256 -> why it could not be loaded
    uses           of the names that were asked about: those called since the replica started
    shadows        of the names that were asked about: rows compared with the shadow version, by verdict
    """

    replica_id: str
    generation: int
    device: str
    adapter_bytes: int
    broken: dict[str, str]
    uses: dict[str, Use]
    shadows: dict[str, dict[str, int]] = field(default_factory=dict)


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
        self._uses: dict[str, Use] = {}
        self._lock = asyncio.Lock()
        self._next_sync: asyncio.Task[None] | None = None
        self._poll: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """Of the table that requests are resolved with."""
        return self._table.generation

    @property
    def table(self) -> Snapshot:
        """What requests are resolved with, as of one generation."""
        return self._table

    @property
    def broken(self) -> Mapping[str, str]:
        """sha256 -> why it could not be loaded here."""
        return self._broken

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

    async def resolve(self, reference: Reference, min_generation: int | None, route_key: str | None = None) -> Resolved:
        """Lease the version that a reference means; whoever calls releases the lease.

        route_key  decides on which side of a split the call falls; None is drawn anew for each call

        Raises AdapterNotFoundError, VersionNotFoundError; NotReadyError while `min_generation` is not reached or the
        version cannot be loaded here.
        """
        resolved = await self._resolve(reference, min_generation, route_key)
        name = resolved.name
        self._uses[name] = Use(self._uses[name].requests + 1 if name in self._uses else 1, time.time())
        return resolved

    async def describe(self, reference: Reference) -> Described:
        """What a reference means, without counting as a call. Raises as `resolve` does."""
        resolved = await self._resolve(reference, None, _NO_KEY)
        try:
            config: AdapterConfig = resolved.lease.config  # type: ignore[attr-defined]  # the engine's lease has it
        finally:
            resolved.lease.release()
        entry = self._table.adapters.get(resolved.name)
        kept = tuple(entry.versions) if entry is not None else (resolved.version,)
        return Described(resolved.name, resolved.version, resolved.sha256, kept, config)

    async def _resolve(self, reference: Reference, min_generation: int | None, route_key: str | None) -> Resolved:
        name = reference.name
        if not self._knows(reference) or self.generation < (min_generation or 0):
            await self.sync()  # it may have been committed a moment ago
        if self.generation < (min_generation or 0):
            raise NotReadyError(
                f"this replica serves generation {self.generation}; {min_generation} was asked for",
                param="min_generation",
                retry_after_s=1,
            )
        while True:
            table = self._table
            version, shadow = self._look_up(table, reference, route_key)
            try:
                lease = self._lease(table, name, version)
            except NotReadyError:
                if self._table is not table:  # replaced between looking up and leasing: look again
                    continue
                raise
            return Resolved(name, version, table.adapters[name].versions[version].sha256, lease, shadow)

    def lease(self, name: str, version: int) -> Any:
        """Lease a version that the table has, uncounted. Raises VersionNotFoundError, NotReadyError."""
        table = self._table
        if name not in table.adapters or version not in table.adapters[name].versions:
            raise VersionNotFoundError(f"adapter {name!r} has no version {version}")
        return self._lease(table, name, version)

    def shadows(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """Those of the names that have a shadow version, with it."""
        entries = [(name, self._table.adapters.get(name)) for name in names]
        return [
            (name, entry.split.shadow)
            for name, entry in entries
            if entry is not None and entry.split is not None and entry.split.shadow is not None
        ]

    def status(self, names: Sequence[str]) -> ReplicaStatus:
        """What this replica says of these names, for the admin listing."""
        info = self._engine.info()
        return ReplicaStatus(
            self.replica_id,
            self.generation,
            str(info.device),
            info.adapter_bytes,
            dict(self._broken),
            {name: self._uses[name] for name in names if name in self._uses},
        )

    def _knows(self, reference: Reference) -> bool:
        entry = self._table.adapters.get(reference.name)
        if entry is None:
            return False
        if not reference.is_pinned:
            return entry.answers
        return _pinned_version(entry, reference) is not None

    def _lease(self, table: Snapshot, name: str, version: int) -> Any:
        sha256 = table.adapters[name].versions[version].sha256
        try:
            return self._engine.lease(sha256)
        except UnknownAdapterError as error:
            raise NotReadyError(
                f"version {version} of {name} cannot be served: {self._broken.get(sha256, 'it is not loaded')}",
                hint="activate another version, or upload this one again",
                retry_after_s=2,
            ) from error

    def _look_up(self, table: Snapshot, reference: Reference, route_key: str | None) -> tuple[int, int | None]:
        """The version that is meant, and its shadow."""
        name = reference.name
        entry = table.adapters.get(name)
        if entry is None:
            raise AdapterNotFoundError(f"no adapter {name!r}", hint=_did_you_mean(name, table.adapters))
        kept = ", ".join(f"{name}@{number}" for number in list(entry.versions)[-4:])
        if reference.is_pinned:
            pinned = _pinned_version(entry, reference)
            if pinned is None:
                wanted = reference.version or f"with the content {reference.sha256}"
                raise VersionNotFoundError(
                    f"adapter {name!r} has no version {wanted}", hint=f"kept versions end with: {kept}"
                )
            return pinned, None
        if entry.split is not None:
            return entry.split.choose(name, route_key), entry.split.shadow
        if entry.active is None:
            raise AdapterNotFoundError(f"no version of {name!r} is active", hint=f"activate one, or name it: {kept}")
        return entry.active, None

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


def _pinned_version(entry: Entry, reference: Reference) -> int | None:
    """The kept version that a pin means: by number, or the newest with that content."""
    if reference.version is not None:
        return reference.version if reference.version in entry.versions else None
    return max((number for number, row in entry.versions.items() if row.sha256 == reference.sha256), default=None)


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
