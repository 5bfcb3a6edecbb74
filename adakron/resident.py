"""One adapter that an engine knows, and what it hands out of it: to users, to those who remove it, to those who ask.

Knows counts and tiers; `residents.py` changes them, under its lock.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

from adakron.artefact import Adapter
from adakron.bank import PackedAdapter, Tenant
from adakron.config import AdapterConfig
from adakron.eviction import worth

if TYPE_CHECKING:
    from adakron.residents import Residents

Source = Callable[[], Adapter]
Tier = Literal["device", "host", "store"]

UPLOAD_COST_S = 1e-3
# Reads from a local disk differ by noise alone; those of a remote store count for what they took at best.
LEAST_READ_COST_S = 1e-2


class Freed(NamedTuple):
    """Bytes that the end of an adapter gave back to the shelves and to host memory."""

    device_bytes: int = 0
    host_bytes: int = 0


class Resident:
    """One adapter that the engine knows; key, config and tenant are None for the bare backbone.

    config   None until the adapter was read once
    packed   its copy in host memory, tenant its place on the device, either may be None
    users    leases; pins: rows between arrival on the device and the end of their batch
    retired  no key means it any more: it goes with its last user
    leaving  to be evicted as soon as its pins are gone; it gets no new ones meanwhile
    kept     never evicted
    """

    def __init__(self, key: str | None, config: AdapterConfig | None, source: Source | None, score: float) -> None:
        self.key, self.config, self.source = key, config, source
        self.packed: PackedAdapter | None = None
        self.tenant: Tenant | None = None
        self.users = self.pins = 0
        self.retired = self.leaving = self.kept = False
        self.score = score
        self.read_cost_s = LEAST_READ_COST_S
        self.size_bytes = 1
        self.loading = threading.Lock()
        self.gone = threading.Event()
        self.freed: Freed | None = None

    @property
    def tier(self) -> Tier:
        return "device" if self.tenant is not None else "host" if self.packed is not None else "store"

    @property
    def device_worth(self) -> float:
        """Against others on the device: a copy in host memory makes coming back cheap."""
        cost_s = UPLOAD_COST_S if self.packed is not None else self.read_cost_s
        return worth(self.score, cost_s, self.size_bytes)

    @property
    def host_worth(self) -> float:
        """Against others in host memory: a copy of what is on the device as well is worth less than any other."""
        return worth(self.score, self.read_cost_s, self.size_bytes) - (1e6 if self.tenant is not None else 0.0)


class Lease:
    """One user of an adapter: while it is held, the adapter stays known. Releasing again does nothing."""

    def __init__(self, residents: "Residents", resident: Resident) -> None:
        self._residents, self.resident = residents, resident
        self._held = True

    @property
    def key(self) -> str | None:
        return self.resident.key

    @property
    def config(self) -> AdapterConfig | None:
        """The adapter's configuration; None for the bare backbone, and until an adapter was read: see `is_read`."""
        return self.resident.config

    @property
    def is_read(self) -> bool:
        """Whether rows can be encoded for it: its configuration is known."""
        return self.resident.key is None or self.resident.config is not None

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


class Departure:
    """An adapter on its way out: no key means it any more, its memory is freed once its last user is done."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident

    def wait(self, timeout_s: float) -> Freed:
        """Wait for that; what was freed until then."""
        self._resident.gone.wait(timeout_s)
        return self._resident.freed or Freed()


@dataclass(frozen=True, slots=True)
class Residency:
    """What is where, and what happened so far.

    adapters                known
    leases, pins            held now
    device_*, host_*        adapters on the device and in host memory, and their bytes; free slots count as device bytes
    hits                    rows that found their adapter on the device
    host_loads, store_loads adapters that were brought to the device from host memory, and from their source
    device_evictions, host_evictions   that were given up
    """

    adapters: int = 0
    leases: int = 0
    pins: int = 0
    device_adapters: int = 0
    device_bytes: int = 0
    host_adapters: int = 0
    host_bytes: int = 0
    hits: int = 0
    host_loads: int = 0
    store_loads: int = 0
    device_evictions: int = 0
    host_evictions: int = 0
