"""Registers, replaces, rolls back and deletes adapters while others ask them, and sends a broken file now and then.

Plans each write and judges its reply; sending is left to the caller. Knows the admin routes' contract, and keeps the
timelines that the checker reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from loadtests.artefacts import ArtefactMaker, SignatureArtefact
from loadtests.timeline import Change, Signature, Timeline
from loadtests.workload import Ask, Call

WriteKind = Literal["register", "activate", "delete", "broken upload"]
WRITE_KINDS: tuple[WriteKind, ...] = ("register", "activate", "delete", "broken upload")

_GOOD: dict[WriteKind, tuple[int, ...]] = {
    "register": (201, 202),
    "activate": (200, 202),
    "delete": (200, 202),
    "broken upload": (422,),
}
_TEXT = "Whatever this says, the label is known."


@dataclass(frozen=True, slots=True)
class Write:
    """One request to the admin routes.

    change         what it does to the name's timeline; None if it must do nothing
    may_be_absent  the name may be unknown to the server: nobody heard the end of the change before
    """

    kind: WriteKind
    name: str
    method: str
    path: str
    change: Change | None
    data: bytes | None = None
    json: dict[str, Any] | None = None
    may_be_absent: bool = False


@dataclass(slots=True)
class _Name:
    timeline: Timeline
    kept: dict[int, Signature] = field(default_factory=dict)


class Registrar:
    """Looks after `names`, none of which may exist on the server yet.

    One write at a time: plan it, judge its reply, plan the next. Artefacts are number `first` and every `step`-th
    after it, so that several registrars of one maker never make the same.
    """

    def __init__(self, maker: ArtefactMaker, names: Sequence[str], *, first: int = 0, step: int = 1) -> None:
        self._maker = maker
        self._first, self._step = first, step
        self._names = {name: _Name(Timeline()) for name in names}
        self.made = 0

    @property
    def timelines(self) -> dict[str, Timeline]:
        """By name, the ones that grow with each write."""
        return {name: state.timeline for name, state in self._names.items()}

    def live(self) -> list[str]:
        """The names that are registered, or about to be."""
        return [name for name, state in self._names.items() if state.timeline.current]

    def plan(self, rng: Random, now_s: float) -> Write:
        """The next write, which counts as begun."""
        absent = [name for name in self._names if not self._names[name].timeline.current]
        if absent:
            return self._register(absent[0], now_s)
        name = rng.choice(list(self._names))
        drawn = rng.random()
        if drawn < 0.2 and len(self._names[name].kept) > 1:
            return self._activate(name, rng, now_s)
        if drawn < 0.3:
            return self._delete(name, now_s)
        if drawn < 0.4:
            return self._broken_upload(name)
        return self._register(name, now_s)

    def farewell(self, now_s: float) -> Iterator[Write]:
        """Deletions of all that is still registered; judge each before the next is taken."""
        for name in self.live():
            may_be_absent = not self._names[name].timeline.is_settled  # the end of the run cut a registration off
            yield replace(self._delete(name, now_s), may_be_absent=may_be_absent)

    def judge(self, write: Write, status: int, body: Any, now_s: float) -> str | None:
        """Draw the reply's consequences. Returns what is wrong with it, or None."""
        fault = self._fault(write, status, body)
        if write.change is None:
            return fault
        timeline = self._names[write.name].timeline
        if fault is None:
            self._note(write, body)
            if status != 202:  # 202: some replica still answers with what was before
                timeline.settle(write.change, now_s)
        elif 400 <= status < 500:
            timeline.abandon(write.change)
        return fault

    def question(self, name: str) -> Call:
        """A request that shows what the name answers with now."""
        return Call("changed", {"adapter": name, "inputs": [_TEXT]}, (Ask(name, _TEXT, None),))

    def _fault(self, write: Write, status: int, body: Any) -> str | None:
        if status == 404 and write.may_be_absent:
            return None
        if status not in _GOOD[write.kind]:
            return f"{write.kind} {write.name}: expected HTTP {_GOOD[write.kind]}; got {status} {str(body)[:300]}"
        if write.change is None:
            return None
        expected: dict[str, object] = {"name": write.name}
        if write.change.signature is not None:
            expected |= {"sha256": write.change.signature.sha256, "active": True}
        found = {key: body.get(key) for key in expected} if isinstance(body, dict) else body
        return None if found == expected else f"{write.kind} {write.name}: expected {expected}; got {found}"

    def _note(self, write: Write, body: dict[str, Any]) -> None:
        state, signature = self._names[write.name], write.change.signature if write.change else None
        if signature is None:
            state.kept.clear()
        elif write.kind == "register":
            state.kept[body["version"]] = signature
            state.timeline.name_version(signature.sha256, body["version"])

    def _register(self, name: str, now_s: float) -> Write:
        artefact = self._make()
        change = self._names[name].timeline.begin(artefact.signature, now_s)
        return Write("register", name, "PUT", f"/v1/adapters/{name}", change, data=artefact.data)

    def _activate(self, name: str, rng: Random, now_s: float) -> Write:
        state = self._names[name]
        version = rng.choice([v for v, signature in state.kept.items() if signature != state.timeline.current])
        change = state.timeline.begin(state.kept[version], now_s)
        return Write("activate", name, "POST", f"/v1/adapters/{name}/activate", change, json={"version": version})

    def _delete(self, name: str, now_s: float) -> Write:
        change = self._names[name].timeline.begin(None, now_s)
        return Write("delete", name, "DELETE", f"/v1/adapters/{name}", change)

    def _broken_upload(self, name: str) -> Write:
        data = self._make().data
        return Write("broken upload", name, "PUT", f"/v1/adapters/{name}", None, data=data[: len(data) // 2])

    def _make(self) -> SignatureArtefact:
        artefact = self._maker.make((self._first + self._step * self.made) % self._maker.count)
        self.made += 1
        return artefact
