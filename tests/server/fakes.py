"""Doubles for the tests of storage and administration: a tiny real artefact, an engine of slots, local replicas."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adakron import Adapter, AdapterConfig
from adakron.errors import UnknownAdapterError
from adakron.resident import Freed
from server.blobs import BlobStore
from server.catalogue import Catalogue
from server.database import sqlite_url
from server.registry import Registry, Replicas
from server.replica import Applied, Replica, ReplicaStatus
from server.telemetry.served import Served, ServedCounts

FINGERPRINT = "0" * 64


def tiny_adapter(seed: int = 0, labels: Sequence[str] = ("ham", "spam")) -> Adapter:
    """A real artefact for an encoder of one layer and five hidden units; another seed gives other bytes."""
    import torch

    from adakron.artefact import expected_shapes
    from adakron.config import AdaKronConfig, Fingerprint

    config = AdapterConfig(
        adakron=AdaKronConfig(bottleneck=12),
        hidden_size=5,
        num_hidden_layers=1,
        base_model_name_or_path="tiny",
        base_fingerprint=Fingerprint(FINGERPRINT, FINGERPRINT, FINGERPRINT),
        label_names=tuple(labels),
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}
    return Adapter.build(config, tensors)


@dataclass
class FakeLease:
    key: str
    engine: "FakeEngine"
    is_held: bool = True

    @property
    def is_read(self) -> bool:
        return self.key in self.engine.adapters

    @property
    def config(self) -> AdapterConfig:
        return self.engine.adapters[self.key].config

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self.engine.leased[self.key] -= 1


@dataclass
class FakeDeparture:
    device_bytes: int
    host_bytes: int = 0

    def wait(self, timeout_s: float) -> Freed:
        return Freed(self.device_bytes, self.host_bytes)


class FakeEngine:
    """Keys and adapters, no arithmetic; it has room for all, but for `room`. `refuse` is raised by offer and check."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.sources: dict[str, Callable[[], Adapter]] = {}
        self.kept: list[str] = []
        self.leased: Counter[str] = Counter()
        self.refuse: dict[str, Exception] = {}
        self.added: list[str] = []
        self.room = 1_000_000
        self.before_add: Callable[[], None] = lambda: None
        self.lock = threading.Lock()

    def announce(self, key: str, source: Callable[[], Adapter]) -> None:
        self.sources[key] = source

    def offer(self, key: str, adapter: Adapter, read_cost_s: float) -> str:
        self.before_add()
        if key in self.refuse:
            raise self.refuse[key]
        if len(self.adapters) >= self.room:
            return "store"
        self.added.append(key)
        self.adapters[key] = adapter
        return "device"

    def read(self, lease: FakeLease) -> None:
        adapter = self.sources[lease.key]()
        if lease.key in self.refuse:
            raise self.refuse[lease.key]
        self.added.append(lease.key)
        self.adapters[lease.key] = adapter

    def keep(self, keys: Collection[str]) -> None:
        self.kept = list(keys)

    def tier(self, key: str) -> str | None:
        return "device" if key in self.adapters else "store" if key in self.sources else None

    def remove(self, key: str) -> FakeDeparture:
        del self.sources[key]
        adapter = self.adapters.pop(key, None)
        return FakeDeparture(0 if adapter is None else adapter.size_bytes)

    def lease(self, key: str | None) -> FakeLease:
        assert key is not None
        with self.lock:
            if key not in self.sources:
                raise UnknownAdapterError(key)
            self.leased[key] += 1
        return FakeLease(key, self)

    def check(self, adapter: Adapter) -> SimpleNamespace:
        if adapter.sha256 in self.refuse:
            raise self.refuse[adapter.sha256]
        return SimpleNamespace(no_effect=False, examples=0)

    def info(self) -> SimpleNamespace:
        return SimpleNamespace(device="cpu", adapter_bytes=sum(a.size_bytes for a in self.adapters.values()))


class LocalReplicas(Replicas):
    """The replicas' side of the registry without processes; those in `deaf` answer nothing and do nothing."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)
        self.deaf: set[str] = set()
        self.counts: list[ServedCounts] = []
        self.before_prove: Callable[[], Any] = lambda: asyncio.sleep(0)

    async def prove(self, sha256: str) -> dict[str, Any]:
        await self.before_prove()
        return await self.replicas[0].prove(sha256)

    async def broadcast(self, generation: int) -> list[Applied]:
        return [
            Applied(r.replica_id, -1, 0) if r.replica_id in self.deaf else await r.apply(generation)
            for r in self.replicas
        ]

    async def describe(self, names: Sequence[str]) -> list[ReplicaStatus]:
        return [r.status(names) for r in self.replicas if r.replica_id not in self.deaf]

    async def take_uses(self) -> list[dict[str, int]]:
        return [r.take_uses() for r in self.replicas if r.replica_id not in self.deaf]

    async def served(self, name: str, versions: Sequence[int]) -> list[dict[int, Served]]:
        return [counts.of(name, versions) for counts in self.counts]


def with_broken_tensor(adapter: Adapter) -> bytes:
    """The artefact with NaN for its last value."""
    return adapter.to_bytes()[:-4] + b"\x00\x00\xc0\x7f"


def relabelled(adapter: Adapter, labels: Sequence[str]) -> Adapter:
    """The same tensors under other labels: other bytes."""
    return Adapter.build(replace(adapter.config, label_names=tuple(labels)), adapter.tensors)


@dataclass
class House:
    """Everything behind the admin routes: a real catalogue and blob store, two replicas in process."""

    catalogue: Catalogue
    blobs: BlobStore
    engines: list[FakeEngine]
    replicas: LocalReplicas
    registry: Registry

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator["House"]:
        catalogue = Catalogue(sqlite_url(folder / "catalogue.sqlite"), is_writer=True)
        reader = Catalogue(sqlite_url(folder / "catalogue.sqlite"), is_writer=False)
        blobs = BlobStore(folder / "blobs")
        engines = [FakeEngine(), FakeEngine()]
        replicas = LocalReplicas(
            [Replica(engine, reader, blobs, replica_id=f"r{n}") for n, engine in enumerate(engines, 1)]
        )
        yield cls(catalogue, blobs, engines, replicas, Registry(catalogue, blobs, replicas, answer_within_s=2))
        reader.close()
        catalogue.close()

    def files(self) -> list[str]:
        """Every file of the blob store."""
        return sorted(path.name for path in self.blobs._root.rglob("*") if path.is_file())
