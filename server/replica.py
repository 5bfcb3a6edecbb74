"""One replica's copy of the catalogue: which adapter a name means, and that the engine can have its weights.

    catalogue + blobs --sync--> announced to the engine, then one new table      request --resolve--> a leased version

The table is replaced by assigning one reference, after everything it needs is known to the engine and before anything
it no longer needs is removed: a request finds the old version or the new one. Told of a change by `apply`, asked by a
request for a name it does not know, and polling besides, it ends up where the catalogue is whatever messages were lost.

What a change brings is read at once, so that an acknowledged version is one that was read here. What was there at the
start is read hottest first, while there is room and time; the rest when it is asked for.
Knows nothing of HTTP or Ray.
"""

import asyncio
import difflib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from adakron import Adapter, AdapterConfig
from adakron.errors import AdaKronError, UnknownAdapterError
from adakron.resident import Departure, Freed
from server.access.caller import current_caller, visible
from server.answers import Identity
from server.batcher import unavailable
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.errors import AdapterNotFoundError, NotReadyError, ServerError, VersionNotFoundError
from server.names import Reference
from server.records import EMPTY, RESTORED_LEAP, Entry, Snapshot
from server.service import Resolved

POLL_INTERVAL_S = 1.5
BROKEN_RETRY_S = 30.0
PRELOAD_WITHIN_S = 10.0
DRAIN_WITHIN_S = 2.0
READ_AT_ONCE = 4
PROVED_BYTES = 16 * 2**20
_MOST_CANDIDATES = 256
_NO_KEY = ""  # a route key, so that a name under a split is described alike each time

log = logging.getLogger(__name__)


class AdapterEngine(Protocol):
    """What of `adakron.Engine` a replica needs; keys are sha256."""

    def announce(self, key: str, source: Callable[[], Adapter]) -> None: ...
    def offer(self, key: str, adapter: Adapter, read_cost_s: float) -> str: ...
    def keep(self, keys: Collection[str]) -> None: ...
    def remove(self, key: str) -> Departure: ...
    def lease(self, key: str | None) -> Any: ...
    def read(self, lease: Any) -> None: ...
    def tier(self, key: str) -> str | None: ...
    def check(self, adapter: Adapter) -> Any: ...
    def info(self) -> Any: ...


class Applied(NamedTuple):
    """Answer to `apply`: the generation this replica serves, and the bytes that reaching it freed in the engine.

    What requests under way still hold after two seconds is freed later, and not counted.
    """

    replica_id: str
    generation: int
    freed_bytes: int
    freed_host_bytes: int = 0


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
    tiers          of the versions of the names that were asked about: sha256 -> device, host or store
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
    tiers: dict[str, str] = field(default_factory=dict)
    shadows: dict[str, dict[str, int]] = field(default_factory=dict)


class _Left(NamedTuple):
    """What a sync from one generation to another removed from the engine."""

    before: int
    after: int
    departures: list[Departure]


class _Broken(NamedTuple):
    reason: str
    retry_at_s: float


class _Proved:
    """Adapters that passed here a moment ago: what is committed next need not be read and validated again.

    The oldest go where all together pass PROVED_BYTES. Any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._adapters: dict[str, Adapter] = {}

    def keep(self, adapter: Adapter) -> None:
        with self._lock:
            self._adapters[adapter.sha256] = adapter
            while sum(one.size_bytes for one in self._adapters.values()) > PROVED_BYTES:
                del self._adapters[next(iter(self._adapters))]

    def take(self, sha256: str) -> Adapter | None:
        with self._lock:
            return self._adapters.pop(sha256, None)


class Replica:
    """Implements `server.service.Resolver`. Methods that await belong to one event loop; `load` blocks.

    replica_id  this replica's name in answers and metrics
    pinned      names whose active versions stay on the device
    on_activated   told, from any thread, that another version of a name is active from now on
    """

    def __init__(
        self,
        engine: AdapterEngine,
        catalogue: Catalogue,
        blobs: BlobStore,
        *,
        replica_id: str,
        pinned: Collection[str] = (),
        on_activated: Callable[[str, int], None] = lambda name, version: None,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self.replica_id = replica_id
        self._engine = engine
        self._catalogue = catalogue
        self._blobs = blobs
        self._pinned = frozenset(pinned)
        self._on_activated = on_activated
        self._poll_interval_s = poll_interval_s
        self._table: Snapshot = EMPTY
        self._announced: set[str] = set()
        self._broken: dict[str, _Broken] = {}
        self._left: deque[_Left] = deque(maxlen=64)
        self._uses: dict[str, Use] = {}
        self._untold_uses: Counter[str] = Counter()
        self._proved = _Proved()
        self._readers = ThreadPoolExecutor(READ_AT_ONCE, "adakron-reader")
        self._lock = asyncio.Lock()
        self._next_sync: asyncio.Task[None] | None = None
        self._poll: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """Of the table that requests are resolved with."""
        return self._table.generation

    @property
    def table(self) -> Snapshot:
        """What requests are resolved with, as of one generation: what of it exists for the present caller."""
        if current_caller().prefix is None:
            return self._table
        seen = {name: self._table.adapters[name] for name in visible(self._table.adapters)}
        return Snapshot(self._table.generation, MappingProxyType(seen))

    @property
    def broken(self) -> Mapping[str, str]:
        """sha256 -> why it could not be loaded here."""
        return {sha256: broken.reason for sha256, broken in self._broken.items()}

    def names(self) -> tuple[str, ...]:
        """Names that answer without a version, in order."""
        return tuple(name for name, entry in self._table.adapters.items() if entry.active is not None)

    def load(self) -> None:
        """Know everything committed so far and read the hottest of it; before the event loop serves.

        Raises StorageUnavailableError.
        """
        self._sync(is_start=True)
        self._preload(time.monotonic() + PRELOAD_WITHIN_S)

    async def start(self) -> None:
        """Begin to poll the catalogue."""
        self._poll = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """End the polling."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def sync(self) -> None:
        """Catch up with all that was committed before this call. Raises StorageUnavailableError."""
        if self._next_sync is None:
            self._next_sync = asyncio.create_task(self._sync_in_turn())
        await asyncio.shield(self._next_sync)

    async def apply(self, generation: int) -> Applied:
        """Catch up to `generation`. The one returned is lower if what changed at it cannot be loaded here."""
        if self.generation < generation:
            await self.sync()
        left = [one for sync in self._left if sync.before < generation <= sync.after for one in sync.departures]
        freed = await asyncio.to_thread(_drained, left) if left else []
        return Applied(
            self.replica_id,
            self._loaded_generation(generation),
            sum(one.device_bytes for one in freed),
            sum(one.host_bytes for one in freed),
        )

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

        Raises AdapterNotFoundError, VersionNotFoundError; NotReadyError while `min_generation` is not reached.
        """
        resolved = await self._resolve(reference, min_generation, route_key)
        name = resolved.name
        self._uses[name] = Use(self._uses[name].requests + 1 if name in self._uses else 1, time.time())
        self._untold_uses[name] += 1
        return resolved

    async def describe(self, reference: Reference) -> Described:
        """What a reference means, without counting as a call. Raises as `resolve` does, or why it cannot be read."""
        resolved = await self._resolve(reference, None, _NO_KEY)
        try:
            if not resolved.lease.is_read:
                [error] = await self.read([resolved.lease])
                if error is not None:
                    raise error
            config = resolved.lease.config
            assert config is not None  # it was just read
        finally:
            resolved.lease.release()
        entry = self._table.adapters.get(resolved.name)
        kept = tuple(entry.versions) if entry is not None else (resolved.version,)
        return Described(resolved.name, resolved.version, resolved.sha256, kept, config)

    async def _resolve(self, reference: Reference, min_generation: int | None, route_key: str | None) -> Resolved:
        name = reference.name
        if not current_caller().sees(name):
            raise _unknown(name, self._table.adapters)  # whether it is there or not
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

    async def read(self, leases: Sequence[Any]) -> list[ServerError | None]:
        """Get ready to encode rows for these adapters; for each, why that is not possible, or None."""
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._readers, self._read, lease) for lease in leases))

    def take_uses(self) -> dict[str, int]:
        """How often each name was called since this was asked last."""
        uses, self._untold_uses = self._untold_uses, Counter()
        return dict(uses)

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
            {sha256: broken.reason for sha256, broken in self._broken.items()},
            {name: self._uses[name] for name in names if name in self._uses},
            self._tiers(names),
        )

    def _tiers(self, names: Sequence[str]) -> dict[str, str]:
        entries = [self._table.adapters[name] for name in names if name in self._table.adapters]
        shas = {row.sha256 for entry in entries for row in entry.versions.values()}
        tiers = {sha256: self._engine.tier(sha256) for sha256 in shas}
        return {sha256: tier for sha256, tier in tiers.items() if tier is not None}

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
            raise NotReadyError(f"version {version} of {name} has just been replaced", retry_after_s=1) from error

    def _look_up(self, table: Snapshot, reference: Reference, route_key: str | None) -> tuple[int, int | None]:
        """The version that is meant, and its shadow."""
        name = reference.name
        entry = table.adapters.get(name)
        if entry is None:
            raise _unknown(name, table.adapters)
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

    def _sync(self, *, is_start: bool = False) -> None:
        due = self._due()
        if self._catalogue.generation() == self._table.generation and not due:
            return
        changes = self._catalogue.changes_since(self._table.generation)
        # In a catalogue that was restored from a backup names may be gone without a change that says so.
        is_next = 0 <= changes.generation - self._table.generation < RESTORED_LEAP
        table = self._table.after(changes) if is_next else self._catalogue.snapshot()
        needed = table.sha256s()
        new = needed - self._announced
        for sha256 in new:
            self._engine.announce(sha256, partial(self._load_blob, sha256))
        self._announced |= new
        if not is_start:  # there may be thousands then: see `load`
            for sha256 in sorted(new | due):
                self._offer(sha256)
        self._engine.keep(_active(table, self._pinned))
        before = self._table.generation
        activated = [] if is_start else _activated(self._table, table)
        self._table = table
        for name, version in activated:
            self._on_activated(name, version)
        departures = [self._engine.remove(sha256) for sha256 in self._announced - needed]
        self._announced &= needed
        for sha256 in self._broken.keys() - needed:
            self._broken.pop(sha256, None)
        for name in list(self._uses):
            if name not in table.adapters:
                self._uses.pop(name, None)
        self._left.append(_Left(before, table.generation, departures))

    def _due(self) -> set[str]:
        """What could not be read, and may be tried again."""
        now_s = time.monotonic()
        return {sha256 for sha256, broken in list(self._broken.items()) if now_s >= broken.retry_at_s}

    def _preload(self, deadline_s: float) -> None:
        """Read active versions while memory has room and time is left: the pinned names first, then the hottest."""
        hottest = self._catalogue.hottest()
        order = dict.fromkeys([*sorted(self._pinned), *hottest, *self._table.adapters])
        for sha256 in dict.fromkeys(_active(self._table, order)):
            if self._offer(sha256) == "store" or time.monotonic() > deadline_s:
                log.info("replica %s starts with a part of its adapters in memory", self.replica_id)
                return

    def _offer(self, sha256: str) -> str | None:
        """Read an adapter and keep it where there is room; where it is then, or None if it cannot be read."""
        began_s = time.perf_counter()
        try:
            adapter = self._load_blob(sha256)
            return self._engine.offer(sha256, adapter, time.perf_counter() - began_s)
        except Exception as error:  # the adapter alone suffers
            self._note_broken(sha256, error)
            return None

    def _note_broken(self, sha256: str, error: Exception) -> None:
        if sha256 not in self._due() and sha256 in self._broken:
            return  # noted where it happened, or refused because of that
        reason = _reason(error)
        log.error("adapter %s cannot be loaded: %s", sha256[:12], reason)
        self._broken[sha256] = _Broken(reason, time.monotonic() + BROKEN_RETRY_S)

    def _load_blob(self, sha256: str) -> Adapter:
        """Raises what went wrong the last time, until it is time to try again."""
        broken = self._broken.get(sha256)
        if broken is not None and time.monotonic() < broken.retry_at_s:
            raise NotReadyError(f"the adapter cannot be loaded: {broken.reason}", retry_after_s=2)
        try:
            adapter = self._proved.take(sha256) or self._validated(sha256)
        except Exception as error:  # a reader may raise anything
            self._note_broken(sha256, error)
            raise
        self._broken.pop(sha256, None)
        return adapter

    def _read(self, lease: Any) -> ServerError | None:
        try:
            self._engine.read(lease)
        except Exception as error:  # a refusal of the engine is as lasting as one of the reader
            self._note_broken(lease.key, error)
            return unavailable(error)
        return None

    def _validated(self, sha256: str) -> Adapter:
        return Adapter.from_bytes(self._blobs.read(sha256), sha256=sha256)

    def _check(self, sha256: str) -> Any:
        adapter = self._validated(sha256)
        admission = self._engine.check(adapter)
        self._proved.keep(adapter)
        return admission


def _drained(departures: Sequence[Departure]) -> list[Freed]:
    """What they freed, once their last users are done or two seconds are over."""
    deadline_s = time.monotonic() + DRAIN_WITHIN_S
    return [departure.wait(max(0.0, deadline_s - time.monotonic())) for departure in departures]


def _active(table: Snapshot, names: Iterable[str]) -> list[str]:
    """The content of the versions that answer for these names, in their order; a name that does not is left out."""
    entries = [table.adapters[name] for name in names if name in table.adapters]
    return [entry.versions[entry.active].sha256 for entry in entries if entry.active is not None]


def _activated(before: Snapshot, after: Snapshot) -> list[tuple[str, int]]:
    """Names whose active version is another one, and which it is."""
    return [
        (name, entry.active)
        for name, entry in after.adapters.items()
        if entry.active is not None and ((former := before.adapters.get(name)) is None or former.active != entry.active)
    ]


def _pinned_version(entry: Entry, reference: Reference) -> int | None:
    """The kept version that a pin means: by number, or the newest with that content."""
    if reference.version is not None:
        return reference.version if reference.version in entry.versions else None
    return max((number for number, row in entry.versions.items() if row.sha256 == reference.sha256), default=None)


def _reason(error: Exception) -> str:
    # Only errors of our own are known to hold no path and no content.
    return str(error)[:300] if isinstance(error, AdaKronError | ServerError) else type(error).__name__


def _unknown(name: str, known: Collection[str]) -> AdapterNotFoundError:
    return AdapterNotFoundError(f"no adapter {name!r}", hint=_did_you_mean(name, visible(known)))


def _did_you_mean(name: str, known: Collection[str]) -> str:
    if not known:
        return "no adapter is registered yet: PUT a safetensors file to /v1/adapters/{name}"
    # Comparing costs time for each name, and anybody may ask: look at a bounded number of plausible ones.
    plausible = [other for other in known if abs(len(other) - len(name)) <= 3 and other[:1] == name[:1]]
    close = difflib.get_close_matches(name, plausible[:_MOST_CANDIDATES], n=1)
    return f"did you mean {close[0]!r}?" if close else "GET /v1/adapters lists the names"
