"""What the dialects ask of the admin plane: loading and unloading by name, and uploads.

    load      a name answers with a version that is registered: the one asked for, the one before unload, or the newest
    unload    a name answers no more; versions are kept, pins answer, and load brings it back
    upload    PUT, for artefacts that came in another envelope

No path and no address is ever taken: what can be loaded is what was registered. The data plane holds an `AdminPlane`
and does not know where it is; `RegistryAdmin` is the thing itself, beside the registry.
"""

from typing import NamedTuple, Protocol

from server.access.caller import check_own_name, current_caller
from server.errors import AdapterNotFoundError, AlreadyLoadedError
from server.records import Change, Origin
from server.registry import Registry


class Loaded(NamedTuple):
    """Which version of a name answers now; for unload, which one did."""

    name: str
    version: int
    sha256: str


class AdminPlane(Protocol):
    """The admin plane as the data plane sees it.

    Besides what is said, all raise NotReadyError where it does not answer, OverloadedError, StorageUnavailableError.
    """

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        """Raises AdapterNotFoundError, VersionNotFoundError; AlreadyLoadedError where the name answers already and
        may not be replaced.
        """
        ...

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        """Raises AdapterNotFoundError, also where no version of the name answers."""
        ...

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        """Raises as `Registry.put` does."""
        ...


class OwnNames:
    """`AdminPlane` for the present caller: other tenants' names are as if they were not there."""

    def __init__(self, admin: AdminPlane) -> None:
        self._admin = admin

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        _require_visible(name)
        return await self._admin.load(name, version, may_replace=may_replace, origin=origin)

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        _require_visible(name)
        return await self._admin.unload(name, origin=origin)

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        return await self._admin.upload(check_own_name(name), artefact, origin=origin)


def _require_visible(name: str) -> None:
    if not current_caller().sees(name):
        raise AdapterNotFoundError(f"no adapter {name!r}", param="name", hint="GET /v1/adapters lists the names")


class RegistryAdmin:
    """`AdminPlane` where the registry is."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def load(self, name: str, version: int | None, *, may_replace: bool, origin: Origin) -> Loaded:
        shown = await self._registry.get(name)
        entry = shown.entry
        if entry.answers and not may_replace:
            raise AlreadyLoadedError(
                f"adapter {name!r} is loaded: version {entry.shown} answers",
                param="lora_name",
                hint="set load_inplace to load another version in its place",
            )
        if version is None and entry.answers:
            return Loaded(name, entry.shown, entry.versions[entry.shown].sha256)
        if version is None:
            before = next((event.active_version for event in shown.history if event.active_version is not None), None)
            version = before if before is not None and before in entry.versions else max(entry.versions)
        done = await self._registry.activate(name, version, origin=origin)
        return _loaded(name, done.change)

    async def unload(self, name: str, *, origin: Origin) -> Loaded:
        return _loaded(name, (await self._registry.deactivate(name, origin=origin)).change)

    async def upload(self, name: str, artefact: bytes, *, origin: Origin) -> Loaded:
        return _loaded(name, (await self._registry.put_bytes(name, artefact, origin=origin)).change)


def _loaded(name: str, change: Change) -> Loaded:
    return Loaded(name, change.version, change.sha256)
