"""What it costs when more adapters are known than fit: `python -m loadtests.engine_residency`.

    cold            one row for an adapter that lies on the disk, against the same row when it is on the device
    host            one row for an adapter that is in host memory; and the copy to the device alone
    working set     four times as many adapters as room, Zipf 1.0, 256 rows in flight: rows a second against all
                    resident, in turns, and the share of rows that needed no load, beside Belady's on the same trace,
                    who answers rows one by one in their order and knows the future

Prints a table and writes engine-residency.json. Files are written to a folder of its own and read through the page
cache. Knows the engine alone; no server, no Ray.
"""

import argparse
import hashlib
import heapq
import json
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import torch

from adakron import AdaKronConfig, Adapter, Backbone, Engine, Row
from adakron.encoding import EncodedRow
from adakron.errors import BankFullError
from adakron.precision import choose_dtype
from loadtests import engine_machine
from loadtests.engine_systems import adapter_template, random_adapters
from loadtests.engine_trace import MAX_TOKENS, generated_trace

RESULTS = Path(__file__).resolve().parent / "results"
BOTTLENECK = 48
IN_FLIGHT = 256
BATCH_TOKENS = 2048
PATIENCE_BATCHES = 8
TARGETS = {
    "cold p50 over warm, ms": (10.0, "<="),
    "cold p99 over warm, ms": (25.0, "<="),
    "host to device, ms": (1.0, "<="),
    "working set x4 vs all resident": (0.90, ">="),
    "hit ratio below Belady's, points": (5.0, "<="),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once. Returns the exit code: 0, whatever the figures."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.engine_residency")
    parser.add_argument("--n", type=int, default=20_000, help="rows of the working-set trace")
    parser.add_argument("--adapters", type=int, default=1000, help="adapters known")
    parser.add_argument("--cold", type=int, default=200, help="cold rows timed")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    engine_machine.keep_freed_memory()
    device = torch.device(options.device)
    dtype = choose_dtype(options.dtype, device)
    backbone = Backbone.load(options.backbone)
    vocabulary = backbone.tokenizer.get_vocab_size()
    trace = generated_trace(range(vocabulary // 2, vocabulary), min(MAX_TOKENS, backbone.max_length))
    draw = random.Random(1)
    rows = [tuple(ids) for ids in draw.choices(trace.pool, k=options.n)]
    with tempfile.TemporaryDirectory() as folder:
        sources = _write(Path(folder), backbone, options.adapters)
        figures = {
            **_cold(backbone, device, dtype, sources, rows, options.cold),
            **_working_set(backbone, device, dtype, sources, rows, draw),
        }
    conditions = {
        **engine_machine.describe(device),
        "backbone": options.backbone,
        "dtype": str(dtype).removeprefix("torch."),
        "adapters": options.adapters,
        "rows": options.n,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(", ".join(f"{key} {value}" for key, value in conditions.items()))
    for name, value in figures.items():
        print(f"{name:45s} {value:10.3f}  {_verdict(name, value)}")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "engine-residency.json"
    path.write_text(json.dumps({"conditions": conditions, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    print(f"report: {path}")
    return 0


def _verdict(name: str, value: float) -> str:
    if name not in TARGETS:
        return ""
    bound, relation = TARGETS[name]
    met = value <= bound if relation == "<=" else value >= bound
    return f"{'met' if met else 'short'} ({relation} {bound:g})"


def _write(folder: Path, backbone: Backbone, count: int) -> dict[str, Callable[[], Adapter]]:
    """Artefacts on the disk, and how each is read: whole, hashed, parsed, checked."""
    adapters = random_adapters(adapter_template(backbone, AdaKronConfig(bottleneck=BOTTLENECK)))
    sources = {}
    for number in range(count):
        path = folder / f"{number}.safetensors"
        data = adapters[number % len(adapters)].to_bytes()
        path.write_bytes(data)
        sources[f"a{number}"] = _reader(path, hashlib.sha256(data).hexdigest())
    return sources


def _reader(path: Path, sha256: str) -> Callable[[], Adapter]:
    def read() -> Adapter:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise OSError(f"{path.name} has other bytes than were written")
        return Adapter.from_bytes(data)

    return read


def _announced(engine: Engine, sources: dict[str, Callable[[], Adapter]]) -> Engine:
    for key, source in sources.items():
        engine.announce(key, source)
    return engine


def _cold(
    backbone: Backbone,
    device: torch.device,
    dtype: torch.dtype,
    sources: dict[str, Callable[[], Adapter]],
    rows: Sequence[tuple[int, ...]],
    count: int,
) -> dict[str, float]:
    """One row at a time, of one length: warm, from disk, from host memory."""
    ids = sorted(rows, key=len)[len(rows) // 2]
    keys = list(sources)
    slot_bytes = Engine(backbone, device, dtype).bank.pack(sources[keys[0]]()).size_bytes
    engine = _announced(Engine(backbone, device, dtype, 8 * slot_bytes), sources)
    hosted = _announced(
        Engine(backbone, device, dtype, 8 * slot_bytes, host_budget_bytes=2 * len(keys) * slot_bytes), sources
    )
    for key in keys:  # read once: the page cache and the configurations are warm, and the host has its copies
        hosted.classify([Row(adapter=key, input_ids=ids)])
        sources[key]()
    warm, cold, host, copies = [], [], [], []
    for number in range(count):
        key = keys[number % len(keys)]
        row = [Row(adapter=key, input_ids=ids)]
        cold.append(_seconds(partial(engine.classify, row)))
        warm.append(_seconds(partial(engine.classify, row)))
        host.append(_seconds(partial(hosted.classify, row)))
        other = keys[(number + len(keys) // 2) % len(keys)]
        with hosted.lease(other) as lease:
            copies.append(_seconds(partial(hosted.fetch, lease)))
            hosted.unpin(lease)
    base = median(warm)
    return {
        "warm p50, ms": 1e3 * base,
        "cold p50 over warm, ms": 1e3 * (median(cold) - base),
        "cold p99 over warm, ms": 1e3 * (quantiles(cold, n=100)[98] - quantiles(warm, n=100)[98]),
        "host p50 over warm, ms": 1e3 * (median(host) - base),
        "host to device, ms": 1e3 * median(copies),
    }


def _working_set(
    backbone: Backbone,
    device: torch.device,
    dtype: torch.dtype,
    sources: dict[str, Callable[[], Adapter]],
    rows: Sequence[tuple[int, ...]],
    draw: random.Random,
) -> dict[str, float]:
    keys = list(sources)
    weights = [1 / (rank + 1) for rank in range(len(keys))]
    asked = [keys[n] for n in draw.choices(range(len(keys)), weights, k=len(rows))]
    slots = len(keys) // 4
    everything = _announced(Engine(backbone, device, dtype), sources)
    all_bytes = sum(everything.bank.pack(source()).size_bytes for source in sources.values())
    quarter = _announced(Engine(backbone, device, dtype, all_bytes // 4, host_budget_bytes=all_bytes), sources)
    for key in keys:  # each was asked for once: what is measured is traffic, not the first read
        everything.classify([Row(adapter=key, input_ids=rows[0])])
        quarter.classify([Row(adapter=key, input_ids=rows[0])])
    streams = [Stream(engine, rows, asked) for engine in (everything, quarter)]
    warm_up = len(rows) // 4
    ratios: list[float] = []
    loads_before, counted_from = 0, 0
    while all(stream.has_more for stream in streams):
        # The same rows in each, in turns: rows a second of a step of one, of a step of the other.
        speeds = [stream.step() for stream in (streams if len(ratios) % 2 else streams[::-1])]
        all_resident, quartered = speeds if len(ratios) % 2 else speeds[::-1]
        ratios.append(quartered / all_resident)
        if streams[1].arrived < warm_up:
            counted_from, loads_before = streams[1].arrived, quarter.residency().host_loads
    loads = quarter.residency().host_loads - loads_before
    hits = 1 - loads / (streams[1].arrived - counted_from)
    best = belady(asked[: streams[1].arrived], slots, counted_from)
    return {
        "working set x4 vs all resident": median(ratios[len(ratios) // 4 :]),
        "hit ratio": hits,
        "hit ratio, Belady": best,
        "hit ratio below Belady's, points": 100 * (best - hits),
    }


class Stream:
    """Rows on their way through an engine as through a busy server: some in flight, each batch what is ready."""

    def __init__(self, engine: Engine, rows: Sequence[tuple[int, ...]], asked: Sequence[str]) -> None:
        self._engine = engine
        self._rows = zip(rows, asked, strict=True)
        self._count = len(rows)
        self._ready: deque[EncodedRow] = deque()
        self._missing: dict[str, list[EncodedRow]] = {}
        self._since: dict[str, int] = {}
        self._batches = 0
        self.arrived = self._in_flight = 0

    @property
    def has_more(self) -> bool:
        return self.arrived < self._count

    def step(self) -> float:
        """Load what is missing, as the server's batcher does, and run one batch. Returns the rows answered a second."""
        began_s = time.perf_counter()
        self._arrive()
        for key in list(self._missing):
            waiting = self._missing[key]
            has_other_work = sum(row.n_tokens for row in self._ready) >= BATCH_TOKENS
            if has_other_work and self._batches - self._since[key] < PATIENCE_BATCHES and self._engine.is_crowded:
                break
            try:
                self._engine.fetch(waiting[0].lease, wait=False)
            except BankFullError:
                break  # rows that are ready hold every slot: the batch frees some
            self._engine.pin(waiting[0].lease, len(waiting) - 1, again=True)
            self._ready.extend(self._missing.pop(key))
        batch: list[EncodedRow] = []
        tokens = 0
        while self._ready and (not batch or tokens + self._ready[0].n_tokens <= BATCH_TOKENS):
            batch.append(self._ready.popleft())
            tokens += batch[-1].n_tokens
        self._engine.run(batch)
        for row in batch:
            self._engine.unpin(row.lease)
            row.lease.release()
        self._in_flight -= len(batch)
        self._batches += 1
        return len(batch) / (time.perf_counter() - began_s)

    def _arrive(self) -> None:
        while self._in_flight < IN_FLIGHT and self.has_more:
            ids, key = next(self._rows)
            lease = self._engine.lease(key)
            [row] = self._engine.encode([Row(adapter=key, input_ids=ids)], [lease])
            if not isinstance(row, EncodedRow):
                raise ValueError(f"the engine refuses a row of the trace: {row.message}")
            if self._engine.pin(lease):
                self._ready.append(row)
            else:
                if key not in self._missing:
                    self._missing[key], self._since[key] = [], self._batches
                self._missing[key].append(row)
            self.arrived += 1
            self._in_flight += 1


def belady(asked: Sequence[str], slots: int, counted_from: int = 0) -> float:
    """The hit ratio of who knows the future: evicts what is asked for last. Counted from that row on."""
    following, seen = [0] * len(asked), dict[str, int]()
    for now in range(len(asked) - 1, -1, -1):
        following[now] = seen.get(asked[now], len(asked) + now)
        seen[asked[now]] = now
    held: dict[str, int] = {}
    order: list[tuple[int, str]] = []
    hits = 0
    for now, key in enumerate(asked):
        if key in held:
            hits += now >= counted_from
        elif len(held) == slots:
            while True:
                when, other = heapq.heappop(order)
                if held.get(other) == -when:
                    del held[other]
                    break
        held[key] = following[now]
        heapq.heappush(order, (-following[now], key))
    return hits / (len(asked) - counted_from)


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())
