"""Doubles for the tests of the dialects: adapters as a replica has them, an admin plane that notes what it is asked."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from adakron.config import AdapterConfig
from server.admin_plane import Loaded
from server.errors import ServerError
from server.names import Reference
from server.records import Entry, Origin, Snapshot, VersionRow
from server.replica import Described
from tests.server.stub_engine import StubResolver

INFO: Mapping[str, Any] = {
    "version": "0.1.0",
    "engine": {
        "backbone": "acme/Encoder",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 512,
    },
    "limits": {"batch_budget_tokens": 1000, "queue_limit_tokens": 10_000, "queue_limit_rows": 300},
}


class StubAdapters:
    """What the resolver knows, as a table. `staged` names have no active version."""

    def __init__(self, resolver: StubResolver) -> None:
        self.resolver = resolver
        self.broken: dict[str, str] = {}
        self.staged: set[str] = set()

    @property
    def table(self) -> Snapshot:
        entries = {
            name: Entry(
                None if name in self.staged else max(versions),
                MappingProxyType(
                    {number: VersionRow(sha256, 1, "2026-11-23T10:00:00+00:00") for number, sha256 in versions.items()}
                ),
                number,
            )
            for number, (name, versions) in enumerate(self.resolver.versions.items(), 1)
        }
        return Snapshot(self.resolver.generation, MappingProxyType(entries))

    async def describe(self, reference: Reference) -> Described:
        resolved = await self.resolver.resolve(reference, None)
        try:
            config: AdapterConfig = resolved.lease.config  # type: ignore[attr-defined]
        finally:
            resolved.lease.release()
        kept = tuple(self.resolver.versions[resolved.name])
        return Described(resolved.name, resolved.version, resolved.sha256, kept, config)


class StubAdmin:
    """Notes calls; raises `refusal` if there is one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.origins: list[Origin] = []
        self.refusal: ServerError | None = None

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        return self._note(origin, "load", name, version, may_replace)

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        return self._note(origin, "unload", name)

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        return self._note(origin, "upload", name, artefact)

    def _note(self, origin: Origin, *call: Any) -> Loaded:
        self.calls.append(call)
        self.origins.append(origin)
        if self.refusal is not None:
            raise self.refusal
        return Loaded(call[1], 2, "0" * 64)
