"""What the catalogue holds and what it answers: plain values, never changed once made. Knows nothing of databases."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from server.split import Split

Precondition: TypeAlias = frozenset[int] | Literal["*"] | None
"""What If-Match asked for: generations of which one must be the adapter's, "*" for any existing adapter, or nothing."""


RESTORED_LEAP = 2**32
"""How far a restore raises the counter: further than changes can have gone that the backup knows nothing of."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One immutable version. created_at is ISO 8601 in UTC, for people; order comes from the numbers.

    no_effect  whether it left the probe texts as the bare backbone has them; None where nobody looked
    """

    sha256: str
    size_bytes: int
    created_at: str
    no_effect: bool | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. active is None while everything is staged; generation is that of its last change, its ETag."""

    active: int | None
    versions: Mapping[int, VersionRow]
    generation: int
    split: Split | None = None

    @property
    def answers(self) -> bool:
        """Whether the bare name answers."""
        return self.active is not None or self.split is not None

    @property
    def shown(self) -> int:
        """The version that stands for the name in a list: the active one, or the newest."""
        return self.active if self.active is not None else max(self.versions)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The catalogue at one generation."""

    generation: int
    adapters: Mapping[str, Entry]

    def sha256s(self) -> set[str]:
        """The content of every kept version."""
        return {row.sha256 for entry in self.adapters.values() for row in entry.versions.values()}

    def after(self, changes: "Changes") -> "Snapshot":
        """What this snapshot is with later changes in it."""
        adapters = dict(self.adapters)
        for name, entry in changes.adapters.items():
            if entry is None:
                adapters.pop(name, None)
            else:
                adapters[name] = entry
        return Snapshot(changes.generation, MappingProxyType(adapters))


EMPTY = Snapshot(0, MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of each name that changed up to `generation`; None for one that is gone."""

    generation: int
    adapters: Mapping[str, Entry | None]


@dataclass(frozen=True, slots=True)
class Listed:
    """One name with the configuration of its shown version, as JSON; None where it was never readable."""

    name: str
    entry: Entry
    config: str | None


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant, the first of two segments of a name, may keep: adapters, and bytes of all their versions."""

    adapters: int | None = None
    size_bytes: int | None = None


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a change. key_id: of the key they came with; source: their address, or the part of the server."""

    key_id: str | None = None
    source: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log of changes. active_version is the one after the change."""

    at: str
    generation: int
    action: str
    version: int | None
    sha256: str | None
    active_version: int | None
    key_id: str | None
    source: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Once:
    """A request that its client may send again and wants done once. request: a hash of all that was asked."""

    key: str
    request: str


@dataclass(frozen=True, slots=True)
class Addition:
    """A version to be. config: JSON; see VersionRow for no_effect."""

    name: str
    sha256: str
    size_bytes: int
    config: str | None = None
    no_effect: bool | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a write did. is_new: a version was made; is_active: bare name answers with it; generation: the ETag now."""

    version: int
    sha256: str
    generation: int
    is_new: bool
    is_active: bool
    no_effect: bool | None = None


@dataclass(frozen=True, slots=True)
class SplitChange:
    """The split that holds now, and the ETag."""

    split: Split
    generation: int


@dataclass(frozen=True, slots=True)
class Removal:
    """What a delete removed, and the generation that no longer has it."""

    versions: Mapping[int, VersionRow]
    generation: int


Outcome: TypeAlias = Change | SplitChange | Removal


def outcome_to_json(outcome: Outcome) -> str:
    """For the row of a request that may be repeated."""
    if isinstance(outcome, Change):
        return json.dumps({"change": asdict(outcome)})
    if isinstance(outcome, SplitChange):
        return json.dumps({"split": outcome.split.to_dict(), "generation": outcome.generation})
    rows = {str(number): asdict(row) for number, row in outcome.versions.items()}
    return json.dumps({"removed": rows, "generation": outcome.generation})


def outcome_from_json(text: str) -> Outcome:
    """What `outcome_to_json` wrote."""
    found: dict[str, Any] = json.loads(text)
    if "change" in found:
        return Change(**found["change"])
    if "split" in found:
        return SplitChange(Split.from_json(json.dumps(found["split"])), found["generation"])
    rows = {int(number): VersionRow(**row) for number, row in found["removed"].items()}
    return Removal(rows, found["generation"])
