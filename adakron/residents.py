"""Which adapters an engine knows, where each is, and how many rows use each.

    store --source()--> Adapter --pack--> host memory --place--> slots on the device
                                    <---------evict---------

A `Lease` counts a user of an adapter: while one is held, the adapter stays known and its bytes can be had. A pin counts
a row between its adapter's arrival on the device and the end of the row's batch: while one is held, the slots do not
change. Only what has a source can be evicted, the rest stays on the device for good.

Where every slot is pinned without end, as under steady overload, the adapter worth least is told to leave: it gets no
new pins but through `fetch`, drains, and goes. So every fetch comes to its end.

Every method may be called from any thread; those that read, pack or place block, the others do not.
Knows keys, tiers and counts; nothing of text, files or time but the cost of a load.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from adakron.artefact import Adapter
from adakron.bank import AdapterBank, BankView, HeadShape, PackedAdapter, Placement, SiteShape, Tenant
from adakron.errors import BankFullError, UnknownAdapterError
from adakron.eviction import Ranking, first_score, used_again
from adakron.resident import LEAST_READ_COST_S, Departure, Freed, Lease, Residency, Resident, Source, Tier

Shapes = tuple[SiteShape, HeadShape]

# An adapter of another shape gives way only where it is worth less than half, and then several of its kind do: room
# changes its shape by copying shelves, which must not happen at every miss.
OTHER_SHAPE_DISCOUNT = 1.0
TRADED_SLOTS = 8


class Residents:
    """See the module's text.

    pack      brings an adapter into the bank's form, or refuses it
    prepare   called after shelves changed and before anything placed is used: compiles what is missing
    host_budget_bytes   of copies in host memory; there are none where the bank has no budget: nothing is evicted
    """

    def __init__(
        self,
        bank: AdapterBank,
        pack: Callable[[Adapter], PackedAdapter],
        prepare: Callable[[], None],
        host_budget_bytes: int = 0,
    ) -> None:
        self._bank, self._pack, self._prepare = bank, pack, prepare
        self._host_budget_bytes = 0 if bank.budget_bytes is None else host_budget_bytes
        self._table: dict[str, Resident] = {}
        self._base = Resident(None, None, None, 0.0)
        self._changed = threading.Condition()  # its lock guards everything here; held for moments only
        self._device: dict[Shapes, Ranking[Resident]] = {}
        self._host: Ranking[Resident] = Ranking(lambda resident: resident.host_worth)
        self._host_bytes = 0
        self._clock = 0
        self._largest_bytes = 0
        self._counts: Counter[str] = Counter()
        self._users = self._pins = self._tenants = self._hidden = 0

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def keys(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(self._table)

    def put(self, key: str, adapter: Adapter) -> None:
        """Let `key` mean this adapter from now on, on the device for good; a former one goes with its last user.

        Raises BankFullError and what `pack` raises; everything is then as before.
        """
        packed = self._pack(adapter)
        tenant = self._place(packed, wait=True)
        resident = Resident(key, packed.config, None, first_score(self._clock))
        with self._changed:
            resident.tenant, resident.size_bytes = tenant, packed.size_bytes
            self._tenants += 1
            former = self._table.get(key)
            self._table[key] = resident
        if former is not None:
            self._retire(former)

    def announce(self, key: str, source: Source) -> None:
        """Let `key` mean the adapter that `source` reads; it is read when it is asked for. Nothing if it does so."""
        with self._changed:
            if key not in self._table:
                self._table[key] = Resident(key, None, source, first_score(self._clock))

    def offer(self, key: str, adapter: Adapter, read_cost_s: float = LEAST_READ_COST_S) -> Tier:
        """An announced adapter that was just read: keep it where there is room, for nothing else gives way to it.

        Returns where it is then. Raises UnknownAdapterError and what `pack` raises.
        """
        with self._changed:
            resident = self._table.get(key)
        if resident is None:
            raise UnknownAdapterError(key)
        with self._using(resident), resident.loading:
            if resident.tenant is not None:
                return resident.tier
            packed = self._pack(adapter)
            try:
                tenant: Tenant | None = self._bank.place(packed)
            except BankFullError:
                tenant = None
            else:
                self._prepare()
            with self._changed:
                self._note_read(resident, packed, read_cost_s)
                if tenant is not None:
                    self._arrive(resident, packed, tenant)
                elif self._host_bytes + packed.size_bytes <= self._host_budget_bytes:
                    self._keep_copy(resident, packed)
                return resident.tier

    def remove(self, key: str) -> Departure:
        """Forget `key`. What leases are held on it can still be loaded, though its source may be gone after this.

        Raises UnknownAdapterError.
        """
        with self._changed:
            resident = self._table.pop(key, None)
        if resident is None:
            raise UnknownAdapterError(key)
        # From here on nobody can lease it: who holds a lease now is all there will be.
        if resident.users > 0 and resident.tier == "store":
            with resident.loading, suppress(Exception):  # a source that fails fails those rows, and not the removal
                if resident.tier == "store":
                    self._read(resident)
        self._retire(resident)
        return Departure(resident)

    def keep(self, keys: Collection[str]) -> None:
        """Of those that are known, never evict these from the device; all others may be evicted again."""
        wanted = frozenset(keys)
        with self._changed:
            for key, resident in self._table.items():
                resident.kept = key in wanted

    def lease(self, key: str | None) -> Lease:
        """Count one more user of `key`, or of the bare backbone for None. Raises UnknownAdapterError."""
        with self._changed:
            resident = self._base if key is None else self._table.get(key)
            if resident is None:
                raise UnknownAdapterError(str(key))
            resident.users += 1
            self._users += 1
            if key is not None:
                self._clock += 1
                resident.score = used_again(resident.score, self._clock)
        return Lease(self, resident)

    @contextmanager
    def hidden(self, adapter: Adapter) -> Iterator[Lease]:
        """The only lease on an adapter that no key names, on the device and pinned; it goes with the lease.

        Raises BankFullError and what `pack` raises.
        """
        packed = self._pack(adapter)
        tenant = self._place(packed, wait=True)
        resident = Resident(None, packed.config, None, 0.0)
        with self._changed:
            resident.tenant, resident.size_bytes = tenant, packed.size_bytes
            resident.users, resident.pins, resident.retired = 1, 1, True
            self._users += 1
            self._pins += 1
            self._tenants += 1
            self._hidden += 1
        lease = Lease(self, resident)
        try:
            yield lease
        finally:
            self.unpin(lease)
            lease.release()
            with self._changed:
                self._hidden -= 1
                self._changed.notify_all()

    def read(self, lease: Lease) -> None:
        """Learn the configuration of a leased adapter, from its source if it was never read. Raises what that does."""
        resident = lease.resident
        with resident.loading:
            if not lease.is_read:
                self._read(resident)

    @property
    def is_crowded(self) -> bool:
        """Whether the device has no free room left: another adapter there pushes one off."""
        budget_bytes = self._bank.budget_bytes
        if budget_bytes is None:
            return False
        used_bytes = self._bank.size_bytes - self._bank.free_bytes
        return budget_bytes - used_bytes < self._largest_bytes

    def pin(self, lease: Lease, rows: int = 1, *, again: bool = False) -> bool:
        """Count rows on their way to a batch, if the adapter is on the device; False, and uncounted, where it is not.

        again  the caller holds a pin on it already: an adapter that is leaving takes no others
        """
        resident = lease.resident
        with self._changed:
            if resident is self._base:
                return True
            if resident.tenant is None or (resident.leaving and not again):
                return False
            resident.pins += rows
            self._pins += rows
            if not again:
                self._counts["hits"] += rows
            return True

    def unpin(self, lease: Lease) -> None:
        """One row fewer; what `pin` or `fetch` counted."""
        resident = lease.resident
        with self._changed:
            if resident is self._base:
                return
            resident.pins -= 1
            self._pins -= 1
            if resident.pins == 0:
                self._changed.notify_all()
        if resident.retired:
            self._free_if_unused(resident)

    def fetch(self, lease: Lease, *, wait: bool = True) -> None:
        """Bring a leased adapter to the device, and pin it for one row.

        wait  for slots that others have pinned, where there are no others to be had

        Raises what the source or `pack` raises, and BankFullError where no slot can be had, or only by waiting.
        """
        resident = lease.resident
        if resident is self._base:
            return
        with self._using(resident), resident.loading:
            with self._changed:
                if resident.tenant is not None:
                    self._repin(resident)
                    return
                packed = resident.packed
                self._counts["store_loads" if packed is None else "host_loads"] += 1
            if packed is None:
                packed = self._read(resident)
            tenant = self._place(packed, wait=wait)
            with self._changed:
                self._arrive(resident, packed, tenant)
                self._repin(resident)

    def tier(self, key: str) -> Tier | None:
        """Where an adapter is; None if it is not known."""
        resident = self._table.get(key)
        return None if resident is None else resident.tier

    def view(self, leases: Sequence[Lease]) -> tuple[BankView, list[Placement | None]]:
        """The bank's tensors, and where in them each pinned adapter lies; None for the bare backbone."""
        tenants = [lease.resident.tenant for lease in leases]
        for lease, tenant in zip(leases, tenants, strict=True):
            if tenant is None and lease.resident is not self._base:
                raise RuntimeError(f"adapter {lease.key} is not on the device: its rows must be pinned")
        return self._bank.view(tenants)

    def figures(self) -> Residency:
        """What is where, and what happened so far."""
        with self._changed:
            return Residency(
                **self._counts,
                adapters=len(self._table),
                leases=self._users,
                pins=self._pins,
                device_adapters=self._tenants,
                device_bytes=self._bank.size_bytes,
                host_adapters=len(self._host),
                host_bytes=self._host_bytes,
            )

    def give_back(self, resident: Resident) -> None:
        """One user fewer; called by `Lease.release`."""
        with self._changed:
            resident.users -= 1
            self._users -= 1
            self._trim_host()
        if resident.retired:
            self._free_if_unused(resident)

    @contextmanager
    def _using(self, resident: Resident) -> Iterator[None]:
        """A user of its own for a load, so that it cannot be freed under it. Raises UnknownAdapterError if it was."""
        with self._changed:
            if resident.freed is not None:
                raise UnknownAdapterError(str(resident.key))
            resident.users += 1
            self._users += 1
        try:
            yield
        finally:
            self.give_back(resident)

    # ---- to the device ---------------------------------------------------------------------------------------------

    def _read(self, resident: Resident) -> PackedAdapter:
        """From the source; the caller holds `resident.loading`."""
        assert resident.source is not None
        began_s = time.perf_counter()
        packed = self._pack(resident.source())
        cost_s = time.perf_counter() - began_s
        with self._changed:
            self._note_read(resident, packed, cost_s)
            self._keep_copy(resident, packed)
        return packed

    def _place(self, packed: PackedAdapter, *, wait: bool) -> Tenant:
        """Slots for it, with others evicted as need be. Raises BankFullError."""
        told_to_leave: set[Resident] = set()
        try:
            while True:
                try:
                    tenant: Tenant | None = self._bank.place(packed)
                except BankFullError as error:
                    tenant = self._make_room(packed, told_to_leave, error, wait=wait)
                if tenant is not None:
                    self._prepare()
                    return tenant
        finally:
            with self._changed:
                for resident in told_to_leave:
                    resident.leaving = False

    def _make_room(
        self, packed: PackedAdapter, told_to_leave: set[Resident], error: BankFullError, *, wait: bool
    ) -> Tenant | None:
        """Give back free room, evict, or wait until something can be evicted; raises `error` where none of it can help.

        Returns the slots of an evicted adapter of the same shapes, taken over; None where it is to be tried again.
        """
        if self._bank.free_bytes >= packed.size_bytes:  # free, but in slots of other shapes
            self._bank.compact()
            self._prepare()
            return None
        with self._changed:
            victims = self._choose(packed)
            evicted = [(victim, self._evict(victim)) for victim in victims]
            if not evicted:
                if not wait or not self._wait_for_room(told_to_leave):
                    raise error
                return None
        for victim, tenant in evicted:
            if victim.packed is None and victim.config is not None and self._host_budget_bytes:
                copy = self._bank.unpack(tenant, victim.config)
                with self._changed:
                    if not victim.retired:
                        self._keep_copy(victim, copy)  # trimmed when what displaced it has arrived
            if len(evicted) == 1 and _shapes(tenant) == packed.shapes:
                return self._bank.exchange(tenant, packed)
            self._bank.remove(tenant)
        return None

    def _wait_for_room(self, told_to_leave: set[Resident]) -> bool:
        """Until some pin is gone, with one adapter told to leave; False where no wait can help. Under the lock."""
        if not any(resident.tenant is not None and resident.leaving for resident in told_to_leave):
            lowest = self._lowest(lambda resident: not resident.leaving and not resident.kept)
            if lowest is not None:
                lowest.leaving = True
                told_to_leave.add(lowest)
            elif not self._hidden and self._lowest(lambda resident: resident.leaving) is None:
                return False  # whatever is on the device stays there for good
        self._changed.wait(timeout=1.0)
        return True

    def _choose(self, packed: PackedAdapter) -> list[Resident]:
        """Whom to evict for it: one of its own shapes, or several of another that are worth much less."""

        def may_go(resident: Resident) -> bool:
            return resident.pins == 0 and not resident.kept

        own = self._device.get(packed.shapes)
        alike = None if own is None else own.lowest(may_go)
        lowest = self._lowest(may_go)
        if lowest is None:
            return []
        if alike is not None and alike[0] <= lowest.device_worth + OTHER_SHAPE_DISCOUNT:
            return [alike[1]]
        victims: dict[Resident, None] = {}
        freed_bytes = 0
        while lowest is not None and freed_bytes < TRADED_SLOTS * packed.size_bytes:
            victims[lowest] = None
            freed_bytes += lowest.size_bytes
            lowest = self._lowest(lambda resident: may_go(resident) and resident not in victims)
        return list(victims)

    def _lowest(self, may_go: Callable[[Resident], bool]) -> Resident | None:
        found = [one for ranking in self._device.values() if (one := ranking.lowest(may_go)) is not None]
        return min(found, key=lambda one: one[0])[1] if found else None

    def _arrive(self, resident: Resident, packed: PackedAdapter, tenant: Tenant) -> None:
        """On the device from now on; under the lock."""
        resident.tenant, resident.leaving = tenant, False
        self._tenants += 1
        if resident.source is not None and not resident.retired:
            ranking = self._device.setdefault(packed.shapes, Ranking(lambda one: one.device_worth))
            ranking.add(resident)
        if resident.packed is not None:
            self._host.add(resident)  # its copy is worth less now
        self._trim_host()

    def _evict(self, resident: Resident) -> Tenant:
        """Off the device; under the lock. Returns the slots, for the caller to free outside it."""
        tenant = resident.tenant
        assert tenant is not None
        resident.tenant, resident.leaving = None, False
        self._tenants -= 1
        self._device[_shapes(tenant)].discard(resident)
        if resident.packed is not None:
            self._host.add(resident)  # its copy is the only one now
        self._counts["device_evictions"] += 1
        return tenant

    def _repin(self, resident: Resident) -> None:
        resident.pins += 1
        self._pins += 1

    # ---- host memory, under the lock -------------------------------------------------------------------------------

    def _note_read(self, resident: Resident, packed: PackedAdapter, cost_s: float) -> None:
        self._largest_bytes = max(self._largest_bytes, packed.size_bytes)
        best_s = cost_s if resident.config is None else min(cost_s, resident.read_cost_s)
        resident.config, resident.size_bytes = packed.config, packed.size_bytes
        resident.read_cost_s = max(best_s, LEAST_READ_COST_S)

    def _keep_copy(self, resident: Resident, packed: PackedAdapter) -> None:
        if resident.packed is None:
            resident.packed = packed
            self._host_bytes += packed.size_bytes
            self._host.add(resident)

    def _trim_host(self) -> None:
        while self._host_bytes > self._host_budget_bytes:
            # A copy on its way to the device is not given up: it would be read again at once, if it still can be.
            lowest = self._host.lowest(lambda resident: resident.tenant is not None or not resident.users)
            if lowest is None:
                return
            self._drop_copy(lowest[1])
            self._counts["host_evictions"] += 1

    def _drop_copy(self, resident: Resident) -> int:
        packed, resident.packed = resident.packed, None
        if packed is None:
            return 0
        self._host.discard(resident)
        self._host_bytes -= packed.size_bytes
        return packed.size_bytes

    # ---- the end of an adapter -------------------------------------------------------------------------------------

    def _retire(self, resident: Resident) -> None:
        with self._changed:
            resident.retired = True
            if resident.tenant is not None and resident.source is not None:
                self._device[_shapes(resident.tenant)].discard(resident)
        self._free_if_unused(resident)

    def _free_if_unused(self, resident: Resident) -> None:
        with self._changed:
            if not resident.retired or resident.users or resident.pins or resident.freed is not None:
                return
            tenant, resident.tenant = resident.tenant, None
            device_bytes = 0
            if tenant is not None:
                self._tenants -= 1
                device_bytes = self._bank.slot_bytes(tenant)
            resident.freed = Freed(device_bytes, self._drop_copy(resident))
        if tenant is not None:
            self._bank.remove(tenant)
        with self._changed:
            resident.gone.set()
            self._changed.notify_all()


def _shapes(tenant: Tenant) -> Shapes:
    return tenant.placement.site, tenant.placement.head
