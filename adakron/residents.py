"""Which adapters are resident, and how many rows use each: freeing waits for the last user.

Knows keys, placements and counts; nothing of tensors or text.
"""

import threading
from types import TracebackType

from adakron.bank import AdapterBank, Placement
from adakron.config import AdapterConfig
from adakron.errors import UnknownAdapterError


class Resident:
    """One adapter in the bank; key, config and placement are None for the bare backbone."""

    def __init__(self, key: str | None, config: AdapterConfig | None, placement: Placement | None) -> None:
        self.key, self.config, self.placement = key, config, placement
        self.users = 0
        self.retired = False


class Lease:
    """One user of an adapter: while it is held, the adapter's slots do not change. Releasing again does nothing."""

    def __init__(self, residents: "Residents", resident: Resident) -> None:
        self._residents, self.resident = residents, resident
        self._held = True

    @property
    def key(self) -> str | None:
        return self.resident.key

    @property
    def config(self) -> AdapterConfig | None:
        """The adapter's configuration; None for the bare backbone."""
        return self.resident.config

    def release(self) -> None:
        held, self._held = self._held, False
        if held:
            self._residents.give_back(self.resident)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Residents:
    """The table key -> adapter. Every method may be called from any thread.

    leases  how many are held, those on the bare backbone counted: back to 0 when nothing runs
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self._table: dict[str, Resident] = {}
        self._base = Resident(None, None, None)
        self._lock = threading.Lock()
        self.leases = 0

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def keys(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._table)

    def put(self, key: str, config: AdapterConfig, placement: Placement) -> None:
        """Let `key` mean this placement from now on; a former one is freed when its users are done."""
        with self._lock:
            former = self._table.get(key)
            self._table[key] = Resident(key, config, placement)
        if former is not None:
            self._retire(former)

    def remove(self, key: str) -> int:
        """Forget `key`. Returns the bytes freed, now or when its last user is done. Raises UnknownAdapterError."""
        with self._lock:
            resident = self._table.pop(key, None)
        if resident is None:
            raise UnknownAdapterError(key)
        return self._retire(resident)

    def lease(self, key: str | None) -> Lease:
        """Count one more user of `key`, or of the bare backbone for None. Raises UnknownAdapterError."""
        with self._lock:
            resident = self._base if key is None else self._table.get(key)
            if resident is None:
                raise UnknownAdapterError(str(key))
            resident.users += 1
            self.leases += 1
        return Lease(self, resident)

    def lease_hidden(self, config: AdapterConfig, placement: Placement) -> Lease:
        """The only lease on an adapter that no key names; releasing it frees the adapter."""
        resident = Resident(None, config, placement)
        resident.users, resident.retired = 1, True
        with self._lock:
            self.leases += 1
        return Lease(self, resident)

    def give_back(self, resident: Resident) -> None:
        """One user fewer; called by `Lease.release`."""
        with self._lock:
            resident.users -= 1
            self.leases -= 1
            free = resident.retired and resident.users == 0
        if free and resident.placement is not None:
            self._bank.remove(resident.placement)

    def _retire(self, resident: Resident) -> int:
        assert resident.placement is not None
        with self._lock:
            resident.retired = True
            free = resident.users == 0
        if free:
            return self._bank.remove(resident.placement)
        return self._bank.slot_bytes(resident.placement)
