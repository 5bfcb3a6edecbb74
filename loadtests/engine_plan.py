"""Which contests are held, between which systems, on which batches: from a scale to outcomes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from adakron import AdaKronConfig, Backbone, Engine
from loadtests import engine_outcome as names
from loadtests.engine_contest import Patience, seconds_of, take_turns
from loadtests.engine_machine import available_bytes, torch_threads, working_bytes
from loadtests.engine_outcome import Case, Entrant, Outcome
from loadtests.engine_proofs import bert_base_bank_bytes, measure_exactness
from loadtests.engine_rivals import PeftMixedBatch, Pipelines, SplitLoop
from loadtests.engine_systems import (
    BareBackbone,
    EngineSystem,
    Floor,
    PaddedEngine,
    System,
    adapter_template,
    random_adapters,
    register,
)
from loadtests.engine_trace import Batch, Ids, Trace

BOTTLENECK = 48
REGISTERED_BOTTLENECK = 16  # so that 10,000 of them fit where a benchmark runs
ROWS = 64
FAN_ADAPTERS = 8
EXACT_BUDGET_TOKENS = 2048

Rival = Literal["B1", "B2", "B3", "B4", "B5"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    adapters     resident in the engine for all contests but `registered`
    tokens       batch sizes of the mixes
    distinct     different adapters in a batch; B3 takes part at 64
    bottlenecks  other r than 48
    registered   resident adapters against 10
    exact_texts  texts mixed against alone
    contest_s    seconds for each contest, at least: all take part in `min_rounds`
    total_s      seconds after which nothing more is measured
    """

    adapters: int
    tokens: tuple[int, ...]
    distinct: tuple[int, ...]
    rivals: frozenset[Rival]
    contest_s: float
    min_rounds: int
    bottlenecks: tuple[int, ...] = ()
    registered: tuple[int, ...] = ()
    fan_out: bool = False
    ways: bool = False
    exact_texts: int = 0
    bank: bool = False
    total_s: float = float("inf")

    def only(self, parts: Sequence[str]) -> "Scale":
        """The same without the other of `engine_outcome.PARTS`: fields of this class, and B4, which alone needs Ray."""
        left_out: dict[str, Any] = {
            part: type(getattr(self, part))() for part in names.PARTS if part not in (*parts, "ray")
        }
        return replace(self, **left_out, rivals=self.rivals if "ray" in parts else self.rivals - {"B4"})


QUICK = Scale(
    adapters=1000,
    tokens=(2048,),
    distinct=(64, 256),
    rivals=frozenset({"B1", "B5"}),
    contest_s=2.4,
    min_rounds=1,
    total_s=42.0,
)
FULL = Scale(
    adapters=1000,
    tokens=(64, 256, 1024, 2048, 8192, 16_384),
    distinct=(1, 4, 16, 64, 256),
    rivals=frozenset({"B1", "B2", "B3", "B4", "B5"}),
    contest_s=12.0,
    min_rounds=3,
    bottlenecks=(16, 32, 64, 128),
    registered=(100, 1000, 10_000),
    fan_out=True,
    ways=True,
    exact_texts=10_000,
    bank=True,
)


@dataclass(frozen=True, slots=True)
class Entry:
    system: System
    batch: Batch
    registered: int = 0


class Bench:
    """One backbone in one dtype on one device; what several contests share is made once.

    Contests run on the threads that torch has when the bench is made. Everything is set up on one: thousands of small
    copies are not faster on more, and on a busy machine the threads wait for each other.

    source     the backbone's name for `Backbone.load`, for a process of Ray's
    started_s  when `Scale.total_s` began, on time.perf_counter
    say        takes each finished outcome, and each note
    """

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        device: torch.device,
        trace: Trace,
        scale: Scale,
        *,
        source: str,
        started_s: float,
        say: Callable[[Outcome | str], None],
    ) -> None:
        self.backbone, self.dtype, self.device = backbone, dtype, device
        self.trace, self.scale, self.say = trace, scale, say
        self._source, self._deadline_s = source, started_s + scale.total_s
        dtype_name = str(dtype).removeprefix("torch.")
        self._threads = torch.get_num_threads()
        with torch_threads(1):
            self._set_up()
        self.case = Case(backbone.name, dtype_name, device.type, trace.source, self.engine.info().kernels)

    def _set_up(self) -> None:
        backbone, dtype, device = self.backbone, self.dtype, self.device
        self.adapters = random_adapters(adapter_template(backbone, AdaKronConfig(bottleneck=BOTTLENECK)))
        self.bare = BareBackbone(Engine(backbone, device, dtype))
        self.floor = Floor(backbone, dtype, device)
        self.engine = Engine(backbone, device, dtype)
        self.keys = register(self.engine, self.adapters, self._affordable(self.scale.adapters), "adapter")

    def run(self) -> Case:
        """Hold every contest of the scale, then the proofs."""
        with torch_threads(1):
            self._run()
        return self.case

    def _run(self) -> None:
        self._hold_all(self._contests())
        if self.scale.exact_texts:
            with torch_threads(self._threads):
                self.case.exactness = measure_exactness(
                    self.engine, self.keys, self.trace, self.scale.exact_texts, EXACT_BUDGET_TOKENS
                )
        if self.scale.bank:
            self.case.bank_bytes = bert_base_bank_bytes(self.device)
        try:
            self._hold_all(self._ray())
        except Exception as error:  # Ray raises anything; what was measured before it must not be lost
            self._note(f"{names.B4}: not measured, {type(error).__name__}: {str(error).splitlines()[0][:200]}")

    def _hold_all(self, contests: Iterator[tuple[str, dict[str, Entry]]]) -> None:
        for contest, entries in contests:
            outcome = self._hold(contest, entries)
            if outcome.entrants:
                self.case.outcomes[contest] = outcome
                self.say(outcome)
            if time.perf_counter() >= self._deadline_s:
                self._note(f"the time was over in {contest}; what comes after it was not measured")
                break

    def _contests(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        """Contest by contest; what one alone needs is made when its turn comes, and dropped after it."""
        padded = PaddedEngine(self.engine, self.keys, self.backbone) if "B5" in self.scale.rivals else None
        yield from self._mixes(padded)
        yield from self._distinct(padded)
        yield from self._bottlenecks()
        yield from self._registered()
        if self.scale.fan_out:
            yield names.FAN, self._fan_out()
        if self.scale.ways:
            yield names.WAYS, self._ways()

    def _mixes(self, padded: System | None) -> Iterator[tuple[str, dict[str, Entry]]]:
        mixed, count = EngineSystem(self.engine, self.keys), len(self.keys)
        base = EngineSystem(self.engine, None)
        for n_tokens in self.scale.tokens:
            rows = self.trace.rows_of(n_tokens)
            uniform = Batch(rows, self.trace.uniform(len(rows), count))
            one = uniform.with_adapters([0] * len(rows))
            entries = {
                names.FLOOR: Entry(self.floor, one),
                names.B0: Entry(self.bare, one),
                names.UNIFORM: Entry(mixed, uniform, count),
                names.ZIPF: Entry(mixed, uniform.with_adapters(self.trace.zipf(len(rows), count)), count),
                names.ONE: Entry(mixed, one, count),
                names.BASE: Entry(base, one, count),
            }
            if padded is not None:
                entries[names.B5] = Entry(padded, uniform, count)
            yield names.tokens_contest(n_tokens), entries

    def _distinct(self, padded: System | None) -> Iterator[tuple[str, dict[str, Entry]]]:
        if not self.scale.distinct:
            return
        mixed, count, most = EngineSystem(self.engine, self.keys), len(self.keys), max(self.scale.distinct)
        peft = self._peft(most)
        loop = SplitLoop(self.backbone, self.adapters, self.dtype, self.device) if "B2" in self.scale.rivals else None
        pipelines = Pipelines(self.backbone, ROWS, self.dtype, self.device) if "B3" in self.scale.rivals else None
        for distinct in self.scale.distinct:
            rows = self.trace.rows(max(ROWS, distinct))
            batch = Batch(rows, self.trace.spread(len(rows), distinct, count))
            one = batch.with_adapters([0] * len(rows))
            entries = {
                names.FLOOR: Entry(self.floor, one),
                names.B0: Entry(self.bare, one),
                names.ENGINE: Entry(mixed, batch, count),
                names.ONE: Entry(mixed, one, count),
            }
            if peft is not None:
                entries[names.B1] = Entry(peft, batch, most)
            if loop is not None:
                entries[names.B2] = Entry(loop, batch, distinct)
            if pipelines is not None and distinct == ROWS:
                entries[names.B3] = Entry(pipelines, batch, ROWS)
            if padded is not None:
                entries[names.B5] = Entry(padded, batch, count)
            yield names.distinct_contest(distinct), entries
        if pipelines is not None:
            batch = Batch(self.trace.rows(ROWS), self.trace.spread(ROWS, ROWS // 8, count))
            yield (
                names.tasks_contest(8),
                {
                    names.B0: Entry(self.bare, batch.with_adapters([0] * ROWS)),
                    names.ENGINE: Entry(mixed, batch, count),
                    names.B3: Entry(pipelines, batch, ROWS),
                },
            )

    def _bottlenecks(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        for bottleneck in self.scale.bottlenecks:
            template = adapter_template(self.backbone, AdaKronConfig(bottleneck=bottleneck))
            engine = Engine(self.backbone, self.device, self.dtype)
            keys = register(engine, random_adapters(template), ROWS, f"r{bottleneck}")
            batch = Batch(self.trace.rows(ROWS), self.trace.spread(ROWS, ROWS, ROWS))
            yield (
                names.bottleneck_contest(bottleneck),
                {
                    names.B0: Entry(self.bare, batch.with_adapters([0] * ROWS)),
                    names.ENGINE: Entry(EngineSystem(engine, keys), batch, ROWS),
                },
            )

    def _registered(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        """10 different adapters in a batch, of 10 resident or of many: nothing but the number resident differs."""
        if not self.scale.registered:
            return
        template = adapter_template(self.backbone, AdaKronConfig(bottleneck=REGISTERED_BOTTLENECK))
        adapters, few = random_adapters(template), 10
        small = Engine(self.backbone, self.device, self.dtype)
        small_system = EngineSystem(small, register(small, adapters, few, "few"))
        for registered in self.scale.registered:
            if self._affordable(registered, REGISTERED_BOTTLENECK) < registered:
                continue
            engine = Engine(self.backbone, self.device, self.dtype)
            system = EngineSystem(engine, register(engine, adapters, registered, "many"))
            rows = self.trace.rows(ROWS)
            yield (
                names.registered_contest(registered),
                {
                    names.FEW: Entry(small_system, Batch(rows, self.trace.spread(ROWS, few, few)), few),
                    names.ENGINE: Entry(system, Batch(rows, self.trace.spread(ROWS, few, registered)), registered),
                },
            )

    def _fan_out(self) -> dict[str, Entry]:
        """One text through 8 adapters that start at half depth, against 8 texts of its length, one for each of them."""
        shape = AdaKronConfig(bottleneck=BOTTLENECK, first_layer=self.backbone.num_hidden_layers // 2)
        adapters = random_adapters(adapter_template(self.backbone, shape))
        system = EngineSystem(self.engine, register(self.engine, adapters, FAN_ADAPTERS, "fan"))
        length = sorted(map(len, self.trace.pool))[len(self.trace.pool) // 2]
        texts: list[Ids] = [rows for rows in self.trace.pool if len(rows) == length]
        different = (texts * FAN_ADAPTERS)[:FAN_ADAPTERS]
        numbers = tuple(range(FAN_ADAPTERS))
        return {
            names.FAN_ROWS: Entry(system, Batch(tuple(different), numbers), FAN_ADAPTERS),
            names.FAN_OUT: Entry(system, Batch((different[0],) * FAN_ADAPTERS, numbers), FAN_ADAPTERS),
        }

    def _ways(self) -> dict[str, Entry]:
        """The engine as it is, with plain torch between its linear maps, and with batch-invariant answers."""
        rows = self.trace.rows(ROWS)
        batch = Batch(rows, self.trace.spread(ROWS, ROWS, ROWS))
        entries = {names.B0: Entry(self.bare, batch.with_adapters([0] * ROWS))}
        for name, engine in (
            (names.ENGINE, Engine(self.backbone, self.device, self.dtype)),
            (names.EAGER, Engine(self.backbone, self.device, self.dtype, kernels="eager")),
            (names.INVARIANT, Engine(self.backbone, self.device, self.dtype, batch_invariant=True)),
        ):
            keys = register(engine, self.adapters, ROWS, "way")
            entries[name] = Entry(EngineSystem(engine, keys), batch, ROWS)
        return entries

    def _ray(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        if "B4" not in self.scale.rivals:
            return
        try:
            from loadtests.engine_ray import RayMultiplexed
        except ImportError:
            self._note(f"{names.B4}: skipped, ray is not installed")
            return
        multiplexed = RayMultiplexed(self._source, self.adapters, self.dtype, self.device, self._threads)
        try:
            batch = Batch(self.trace.rows(ROWS), self.trace.spread(ROWS, ROWS, len(self.keys)))
            yield (
                names.RAY,
                {
                    names.B0: Entry(self.bare, batch.with_adapters([0] * ROWS)),
                    names.ENGINE: Entry(EngineSystem(self.engine, self.keys), batch, len(self.keys)),
                    names.B4: Entry(multiplexed, batch, ROWS),
                },
            )
        finally:
            multiplexed.close()

    def _peft(self, adapters: int) -> System | None:
        if "B1" not in self.scale.rivals:
            return None
        try:
            return PeftMixedBatch(self.backbone, adapters, self.dtype, self.device)
        except ImportError:
            self._note(f"{names.B1}: skipped, peft is not installed")
            return None

    def _hold(self, contest: str, entries: dict[str, Entry]) -> Outcome:
        patience = Patience(self.scale.contest_s, self.scale.min_rounds, self._deadline_s)
        with ExitStack() as held, torch_threads(self._threads):
            runs = {system: entry.system.prepare(entry.batch, held) for system, entry in entries.items()}
            rounds = take_turns(runs, patience)
            entrants = []
            for system, entry in entries.items():
                if not any(system in seconds for seconds in rounds):
                    continue
                entrant = Entrant(
                    system, len(entry.batch.ids), entry.batch.n_tokens, entry.batch.distinct, entry.registered
                )
                if time.perf_counter() + seconds_of(rounds, system).median < self._deadline_s:
                    entrant = replace(entrant, working_bytes=working_bytes(runs[system], self.device))
                entrants.append(entrant)
        return Outcome(contest, tuple(entrants), tuple(rounds))

    def _affordable(self, wanted: int, bottleneck: int = BOTTLENECK) -> int:
        """`wanted`, or 256 where that many adapters do not fit into memory: a shelf that grows is there twice."""
        shape = AdaKronConfig(bottleneck=bottleneck)
        one = shape.parameters_per_layer(self.backbone.hidden_size) * self.backbone.num_hidden_layers
        needed = 3 * wanted * one * self.dtype.itemsize
        available = available_bytes(self.device)
        if wanted <= 256 or available is None or needed < 0.9 * available:
            return wanted
        self._note(f"{wanted} adapters would take up to {needed / 1e9:.1f} GB, which is not there")
        return 256

    def _note(self, text: str) -> None:
        self.case.notes.append(text)
        self.say(text)
