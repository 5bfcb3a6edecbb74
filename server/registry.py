"""Registering, activating, listing and deleting adapters: the catalogue, the blobs and the replicas brought together.

    put:  stage the bytes -> validate -> publish the blob -> prove on one replica -> commit -> tell all replicas

Nothing is visible before the commit, and a refused upload leaves nothing behind. What is past its upload runs to its
end even where the client has gone, so that blobs and catalogue never part. There is one of these in the whole server.
Knows nothing of HTTP or Ray.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from adakron import Adapter, AdapterConfig
from adakron.errors import AdaKronError
from server.blobs import BlobStore, Freed, StagedBlob
from server.catalogue import Catalogue
from server.errors import NotReadyError, QuotaExceededError, ServerError, VersionNotFoundError, unknown_adapter
from server.records import Addition, Change, Entry, Event, Listed, Once, Origin, Precondition, Removal, SplitChange
from server.replica import Applied, ReplicaStatus
from server.shadow import VERDICTS
from server.split import Split
from server.telemetry.served import Served, joined
from server.tidying import collect, collect_orphans

# From the end of the upload to the reply; Ray gives up on a request after 25 s.
ANSWER_WITHIN_S = 20.0
DESCRIBE_WITHIN_S = 2.0
VALIDATE_AT_ONCE = 2
_WRITE_BYTES = 1 << 20
HISTORY_EVENTS = 20
TIDY_EVERY_S = 3600.0
NOTE_USES_EVERY_S = 30.0
TIERS = ("device", "host", "store")

_NOBODY = Origin()

log = logging.getLogger(__name__)

T = TypeVar("T")


class Replicas(Protocol):
    """The replicas of the data plane, seen from here."""

    async def prove(self, sha256: str) -> dict[str, Any]:
        """`Replica.prove` on any one of them, with its errors."""
        ...

    async def broadcast(self, generation: int) -> list[Applied]:
        """`Replica.apply` on all of them; generation -1 stands for one that did not answer."""
        ...

    async def describe(self, names: Sequence[str]) -> list[ReplicaStatus]:
        """What those that answer say of these adapters."""
        ...

    async def take_uses(self) -> list[dict[str, int]]:
        """`Replica.take_uses` of those that answer."""
        ...

    async def served(self, name: str, versions: Sequence[int]) -> list[dict[int, Served]]:
        """`ServedCounts.of` of those that answer."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upload that arrived whole, and the valid name it is for."""

    name: str
    staged: StagedBlob


@dataclass(frozen=True, slots=True)
class Put:
    """What an upload became. lagging: replicas that do not serve it yet; they will, by themselves."""

    change: Change
    no_effect: bool
    lagging: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Activated:
    """Which version answers now; after `deactivate`, which one did."""

    change: Change
    lagging: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Divided:
    """How the calls are shared out now."""

    change: SplitChange
    lagging: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deleted:
    """What is gone. device_bytes, host_bytes: freed in the engines of all replicas; freed: of files."""

    versions: tuple[int, ...]
    generation: int
    device_bytes: int
    host_bytes: int
    freed: Freed
    lagging: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One adapter as it stands. config is of the active version, or the newest; None if its blob never was readable.

    resident     version -> the replicas that serve it
    tiers        version -> the fastest tier that any of them holds it in: device, host, store
    requests     calls by this name since those replicas started; last_used_at: of the last of them, ISO 8601 in UTC
    shadow_rows  rows compared with the shadow version, by verdict; None where there is no shadow
    """

    name: str
    entry: Entry
    config: AdapterConfig | None
    resident: dict[int, tuple[str, ...]]
    tiers: dict[int, str]
    requests: int
    last_used_at: str | None
    shadow_rows: dict[str, int] | None
    history: Sequence[Event] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the replicas that answered have served of one adapter: version -> counts, of those that were called.

    configs  of every kept version; None where it was never readable
    """

    name: str
    entry: Entry
    served: dict[int, Served]
    configs: dict[int, AdapterConfig | None]
    replicas: int


class Registry:
    """All writes of the server. Every method belongs to one event loop; disk and parsing happen in threads.

    Besides what is said at each method, all raise StorageUnavailableError and StorageFullError.
    """

    def __init__(
        self, catalogue: Catalogue, blobs: BlobStore, replicas: Replicas, *, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self._replicas = replicas
        self._answer_within_s = answer_within_s
        self._name_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._blob_lock = asyncio.Lock()
        self._pinned: Counter[str] = Counter()
        self._validating = asyncio.Semaphore(VALIDATE_AT_ONCE)
        self._running: set[asyncio.Task[Any]] = set()

    async def put(
        self,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        activate: bool = True,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Put:
        """Register the artefact in `chunks` under a valid name; the same bytes as a kept version are that version.

        once  its `request` says all that was asked but for the bytes

        Raises BodyTooLargeError, the FormatError family, ConfigError, BaseMismatchError, GoldenMismatchError,
        BankFullError, PreconditionFailedError, ConflictError; NotReadyError if no replica could prove it in time.
        """
        staged = await self.stage()
        try:
            await _receive(staged, chunks)
        except BaseException:
            staged.close()
            raise
        return await self._to_its_end(self._register(name, staged, activate, if_match, origin, once))

    async def put_bytes(self, name: str, artefact: bytes, *, origin: Origin = _NOBODY) -> Put:
        """`put`, of an artefact that is all here."""

        async def chunks() -> AsyncIterator[bytes]:
            yield artefact

        return await self.put(name, chunks(), origin=origin)

    async def stage(self) -> StagedBlob:
        """A file for an upload; whoever calls closes it."""
        return await asyncio.to_thread(self._blobs.stage)

    async def put_group(
        self, candidates: Sequence[Candidate], *, activate: bool, origin: Origin
    ) -> tuple[list[Change | AdaKronError | ServerError], tuple[str, ...]]:
        """Register each candidate or say why not, in their order; and the replicas that lag behind them.

        Those that pass are committed together and become visible together. Whoever calls closes what was staged.
        """
        return await self._to_its_end(self._register_group(candidates, activate, origin))

    async def activate(
        self,
        name: str,
        version: int,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Activated:
        """Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError, ConflictError."""
        write = partial(self._catalogue.activate, name, version, if_match=if_match, origin=origin, once=once)
        return await self._to_its_end(self._activate(name, write))

    async def deactivate(self, name: str, *, origin: Origin = _NOBODY) -> Activated:
        """Let the bare name answer no more. Raises AdapterNotFoundError, also where no version is active."""
        write = partial(self._catalogue.deactivate, name, origin=origin)
        return await self._to_its_end(self._activate(name, write))

    async def split(
        self,
        name: str,
        split: Split,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Divided:
        """Share the calls to the bare name out among versions.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError, ConflictError.
        """
        write = partial(self._catalogue.split, name, split, if_match=if_match, origin=origin, once=once)
        return await self._to_its_end(self._split(name, write))

    async def delete(
        self,
        name: str,
        version: int | None = None,
        *,
        if_match: Precondition = None,
        origin: Origin = _NOBODY,
        once: Once | None = None,
    ) -> Deleted:
        """Remove one version, or the name with all of them.

        Raises AdapterNotFoundError, VersionNotFoundError, PreconditionFailedError, ConflictError (the active version).
        """
        if version is None:
            write = partial(self._catalogue.delete_name, name, if_match=if_match, origin=origin, once=once)
        else:
            write = partial(self._catalogue.delete_version, name, version, if_match=if_match, origin=origin, once=once)
        return await self._to_its_end(self._delete(name, write))

    async def page(self, limit: int, after: str = "", prefix: str = "") -> tuple[list[Shown], str | None]:
        """Up to `limit` adapters by name, those that begin with `prefix`, from behind `after` on; and where to go on,
        or None at the end.
        """
        listed = await asyncio.to_thread(self._catalogue.page, limit + 1, after, prefix)
        statuses = await self._describe([adapter.name for adapter in listed[:limit]])
        page = [_shown(adapter, statuses) for adapter in listed[:limit]]
        return page, page[-1].name if len(listed) > limit else None

    async def get(self, name: str) -> Shown:
        """One adapter with the last of its history. Raises AdapterNotFoundError."""
        listed = await asyncio.to_thread(self._catalogue.get, name)
        if listed is None:
            raise unknown_adapter(name)
        history = await asyncio.to_thread(self._catalogue.history, name, HISTORY_EVENTS)
        return _shown(listed, await self._describe([name]), history)

    async def traffic(self, name: str) -> Traffic:
        """What was served of one adapter, over all replicas. Raises AdapterNotFoundError."""
        listed = await asyncio.to_thread(self._catalogue.get, name)
        if listed is None:
            raise unknown_adapter(name)
        written = await asyncio.to_thread(self._catalogue.configs, name)
        configs = {number: None if text is None else AdapterConfig.from_json(text) for number, text in written.items()}
        try:
            asked = self._replicas.served(name, list(listed.entry.versions))
            parts = await asyncio.wait_for(asked, DESCRIBE_WITHIN_S)
        except TimeoutError:
            parts = []
        return Traffic(name, listed.entry, joined(parts), configs, len(parts))

    async def keep_tidy(self) -> None:
        """Remove what nothing needs, every hour, until cancelled."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            try:
                await asyncio.to_thread(self._catalogue.forget_requests)
                async with self._blob_lock:
                    await asyncio.to_thread(collect_orphans, self._catalogue, self._blobs, spared=+self._pinned)
            except ServerError as error:
                log.warning("nothing was tidied: %s", error)

    async def note_uses(self) -> None:
        """Write down what is called how much, every half minute, until cancelled: a start reads the hottest first."""
        while True:
            await asyncio.sleep(NOTE_USES_EVERY_S)
            uses: Counter[str] = Counter()
            for told in await self._replicas.take_uses():
                uses.update(told)
            try:
                if uses:
                    await asyncio.to_thread(self._catalogue.note_uses, uses)
            except ServerError as error:
                log.warning("uses were not noted: %s", error)

    async def fetch(self, name: str, version: int) -> tuple[str, bytes]:
        """The sha256 and the bytes of a kept version. Raises AdapterNotFoundError, VersionNotFoundError."""
        listed = await asyncio.to_thread(self._catalogue.get, name)
        if listed is None:
            raise unknown_adapter(name)
        row = listed.entry.versions.get(version)
        if row is None:
            raise VersionNotFoundError(f"adapter {name!r} has no version {version}", param="version")
        return row.sha256, await asyncio.to_thread(self._blobs.read, row.sha256)

    async def _register(
        self,
        name: str,
        staged: StagedBlob,
        activate: bool,
        if_match: Precondition,
        origin: Origin,
        once: Once | None,
    ) -> Put:
        sha256, size_bytes = staged.sha256, staged.size_bytes
        if once is not None:
            once = Once(once.key, request_hash(once.request, sha256))
        with staged:
            async with self._name_lock(name), self._validating:
                former = None if once is None else await asyncio.to_thread(self._catalogue.outcome_of, once)
                if isinstance(former, Change):
                    applied = await self._broadcast(former.generation, time.monotonic() + self._answer_within_s)
                    return Put(former, bool(former.no_effect), _lagging(applied, former.generation))
                adapter = await asyncio.to_thread(_validated, staged)
                self._pinned[sha256] += 1
                deadline_s = time.monotonic() + self._answer_within_s
                try:
                    async with self._blob_lock:
                        await asyncio.to_thread(staged.keep)
                    proof = await self._prove(sha256, deadline_s)
                    add = partial(
                        self._catalogue.add_version,
                        config=adapter.config.to_json(),
                        no_effect=bool(proof["no_effect"]),
                        activate=activate,
                        if_match=if_match,
                        is_stored=self._blobs.__contains__,
                        origin=origin,
                        once=once,
                    )
                    change = await asyncio.to_thread(add, name, sha256, size_bytes)
                except BaseException:
                    self._unpin([sha256])
                    await self._collect({sha256})
                    raise
                self._unpin([sha256])
                applied = await self._broadcast(change.generation, deadline_s)
        return Put(change, bool(proof["no_effect"]), _lagging(applied, change.generation))

    async def _register_group(
        self, candidates: Sequence[Candidate], activate: bool, origin: Origin
    ) -> tuple[list[Change | AdaKronError | ServerError], tuple[str, ...]]:
        deadline_s = time.monotonic() + self._answer_within_s
        pinned = [candidate.staged.sha256 for candidate in candidates]
        async with AsyncExitStack() as locks:
            for name in sorted(
                {candidate.name for candidate in candidates}
            ):  # in one order, or two groups wait for ever
                await locks.enter_async_context(self._name_lock(name))
            self._pinned.update(pinned)
            added: list[Change | QuotaExceededError] = []
            try:
                admitted = await asyncio.gather(*(self._admit(candidate, deadline_s) for candidate in candidates))
                additions = [one for one in admitted if isinstance(one, Addition)]
                add = partial(
                    self._catalogue.add_versions, activate=activate, is_stored=self._blobs.__contains__, origin=origin
                )
                added = await asyncio.to_thread(_add_all, add, additions)
            except ServerError as error:  # of the catalogue: none of the group is registered
                return [error for _ in candidates], ()
            finally:
                self._unpin(pinned)
                changes = [one for one in added if isinstance(one, Change)]
                await self._collect(set(pinned) - {change.sha256 for change in changes})
            generation = max((change.generation for change in changes), default=0)
            applied = await self._broadcast(generation, deadline_s) if changes else []
        registered = iter(added)
        outcomes = [next(registered) if isinstance(one, Addition) else one for one in admitted]
        return outcomes, _lagging(applied, generation)

    async def _admit(self, candidate: Candidate, deadline_s: float) -> Addition | AdaKronError | ServerError:
        """Validate, publish and prove one upload, or say what is wrong with it."""
        staged = candidate.staged
        try:
            async with self._validating:
                adapter = await asyncio.to_thread(_validated, staged)
                async with self._blob_lock:
                    await asyncio.to_thread(staged.keep)
            proof = await self._prove(staged.sha256, deadline_s)
        except (AdaKronError, ServerError) as error:
            return error
        config = adapter.config.to_json()
        return Addition(candidate.name, staged.sha256, staged.size_bytes, config, bool(proof["no_effect"]))

    async def _activate(self, name: str, write: Callable[[], Change]) -> Activated:
        async with self._name_lock(name):
            change = await asyncio.to_thread(write)
            applied = await self._broadcast(change.generation, time.monotonic() + self._answer_within_s)
        return Activated(change, _lagging(applied, change.generation))

    async def _split(self, name: str, write: Callable[[], SplitChange]) -> Divided:
        async with self._name_lock(name):
            change = await asyncio.to_thread(write)
            applied = await self._broadcast(change.generation, time.monotonic() + self._answer_within_s)
        return Divided(change, _lagging(applied, change.generation))

    async def _delete(self, name: str, write: Callable[[], Removal]) -> Deleted:
        async with self._name_lock(name):
            removal = await asyncio.to_thread(write)
            applied = await self._broadcast(removal.generation, time.monotonic() + self._answer_within_s)
            freed = await self._collect({row.sha256 for row in removal.versions.values()})
        return Deleted(
            tuple(removal.versions),
            removal.generation,
            sum(answer.freed_bytes for answer in applied),
            sum(answer.freed_host_bytes for answer in applied),
            freed,
            _lagging(applied, removal.generation),
        )

    async def _prove(self, sha256: str, deadline_s: float) -> dict[str, Any]:
        # A fifth of the time is kept for telling the replicas, so that a slow proof does not end in a needless 202.
        patience_s = deadline_s - time.monotonic() - self._answer_within_s / 5
        try:
            return await asyncio.wait_for(self._replicas.prove(sha256), patience_s)
        except TimeoutError as error:
            raise NotReadyError(
                f"no replica tried the adapter within {patience_s:.0f} s; nothing was registered",
                hint="send the upload again when the server is less busy",
                retry_after_s=5,
            ) from error

    async def _broadcast(self, generation: int, deadline_s: float) -> list[Applied]:
        try:
            applied = await asyncio.wait_for(self._replicas.broadcast(generation), deadline_s - time.monotonic())
        except TimeoutError:
            applied = []
        # Nobody answering means that nobody is known to serve it: committed all the same, and followed by polling.
        return applied or [Applied("unknown", -1, 0)]

    async def _describe(self, names: Sequence[str]) -> list[ReplicaStatus]:
        try:
            return await asyncio.wait_for(self._replicas.describe(names), DESCRIBE_WITHIN_S)
        except TimeoutError:
            return []

    def _unpin(self, sha256s: Iterable[str]) -> None:
        for sha256 in sha256s:
            self._pinned[sha256] -= 1
            if not self._pinned[sha256]:
                del self._pinned[sha256]

    async def _collect(self, sha256s: set[str]) -> Freed:
        """Delete those blobs that no kept version and no upload under way needs."""
        freed = Freed(0)
        async with self._blob_lock:
            for sha256 in sha256s:
                if self._pinned[sha256] > 0:
                    continue
                one = await asyncio.to_thread(collect, self._catalogue, self._blobs, sha256)
                freed = Freed(freed.disk_bytes + one.disk_bytes, freed.remote_bytes + one.remote_bytes)
        return freed

    def _name_lock(self, name: str) -> asyncio.Lock:
        lock = self._name_locks.get(name)
        if lock is None:
            lock = self._name_locks[name] = asyncio.Lock()
        return lock

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        # A thread that commits cannot be cancelled; if its coroutine could, the clean-up would run before the commit.
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


def _validated(staged: StagedBlob) -> Adapter:
    return Adapter.from_bytes(staged.read_back(), sha256=staged.sha256)


async def _receive(staged: StagedBlob, chunks: AsyncIterator[bytes]) -> None:
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) >= _WRITE_BYTES:
            await asyncio.to_thread(staged.write, bytes(buffer))
            buffer.clear()
    await asyncio.to_thread(staged.write, bytes(buffer))


def _add_all(
    add: Callable[[Sequence[Addition]], list[Change]], additions: Sequence[Addition]
) -> list[Change | QuotaExceededError]:
    """Commit them together; where that passes a quota, one after another, so that only what is too much is refused."""
    if not additions:
        return []
    try:
        return list(add(additions))
    except QuotaExceededError:
        pass
    added: list[Change | QuotaExceededError] = []
    for addition in additions:
        try:
            added += add([addition])
        except QuotaExceededError as error:
            added.append(error)
    return added


def request_hash(*parts: str) -> str:
    """What `Once.request` holds: equal for equal requests, and nothing that was in them."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _shown(listed: Listed, statuses: Sequence[ReplicaStatus], history: Sequence[Event] = ()) -> Shown:
    name, entry = listed.name, listed.entry
    resident = {
        number: tuple(
            status.replica_id
            for status in statuses
            if status.generation >= entry.generation and row.sha256 not in status.broken
        )
        for number, row in entry.versions.items()
    }
    tiers = {
        number: min((status.tiers.get(row.sha256, "store") for status in statuses), key=TIERS.index, default="store")
        for number, row in entry.versions.items()
    }
    config = None if listed.config is None else AdapterConfig.from_json(listed.config)
    uses = [status.uses[name] for status in statuses if name in status.uses]
    last = datetime.fromtimestamp(max(use.last_s for use in uses), UTC).isoformat(timespec="seconds") if uses else None
    return Shown(
        name,
        entry,
        config,
        resident,
        tiers,
        requests=sum(use.requests for use in uses),
        last_used_at=last,
        shadow_rows=_shadow_rows(name, entry, statuses),
        history=history,
    )


def _shadow_rows(name: str, entry: Entry, statuses: Sequence[ReplicaStatus]) -> dict[str, int] | None:
    if entry.split is None or entry.split.shadow is None:
        return None
    counted: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    for status in statuses:
        counted.update(status.shadows.get(name, {}))
    return dict(counted)


def _lagging(applied: Sequence[Applied], generation: int) -> tuple[str, ...]:
    return tuple(sorted(answer.replica_id for answer in applied if answer.generation < generation))
