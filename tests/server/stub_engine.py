"""A deterministic engine and resolver for tests of the service: no model, no storage, everything observable.

A row costs its words plus two tokens. Its logits depend on adapter and text alone. The engine notes every batch, and
every row that runs after its lease was released, which must never happen.
"""

import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adakron import Result, Row, RowError
from adakron.config import AdaKronConfig, AdapterConfig, Calibration, Fingerprint, ProblemType
from server.errors import AdapterNotFoundError, NotReadyError, ServerError, VersionNotFoundError
from server.names import Reference
from server.service import Resolved

MAX_TEXT_CHARACTERS = 20_000


def config_of(
    labels: Sequence[str] = ("negative", "positive"),
    problem_type: ProblemType = "single_label_classification",
    *,
    takes_pair: bool = False,
    max_length: int = 128,
    threshold: float | None = None,
) -> AdapterConfig:
    return AdapterConfig(
        adakron=AdaKronConfig(bottleneck=12),
        hidden_size=5,
        num_hidden_layers=1,
        base_model_name_or_path="stub",
        base_fingerprint=Fingerprint("0" * 64, "0" * 64, "0" * 64),
        label_names=tuple(labels),
        problem_type=problem_type,
        text_fields=("text", "text_pair") if takes_pair else ("text",),
        max_length=max_length,
        calibration=Calibration(threshold=threshold),
    )


def sha256_of(number: int) -> str:
    return f"{number:064x}"


class StubLease:
    def __init__(self, engine: "StubEngine", key: str) -> None:
        self.engine = engine
        self.key = key
        self.config = engine.adapters[key]
        self.is_held = True
        self.is_read = key not in engine.unread
        engine.held[key] += 1
        engine.leases_ever += 1

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self.engine.held[self.key] -= 1


@dataclass(frozen=True)
class StubEncoded:
    lease: StubLease
    text: str
    n_tokens: int
    truncated: bool


class StubEngine:
    """Open `gate` lets `run` go on; `running` is set while a batch stands before it; the same for `encode`.

    failing        keys whose presence makes `run` raise
    failing_texts  texts whose presence makes `encode` raise
    numeric        keys whose rows come back as ADAPTER_NUMERIC_ERROR
    deadly         keys whose presence raises SystemExit in the worker thread
    short          results, or encoded rows, left out of what is returned
    cold           keys that are not on the device until they are fetched; `load_gate` lets a fetch go on
    unloadable     keys whose fetch raises this
    unread         keys that must be read before rows can be encoded; the resolver does it, or raises `unreadable`
    """

    def __init__(self) -> None:
        self.adapters: dict[str, AdapterConfig] = {}
        self.held: Counter[str] = Counter()
        self.leases_ever = 0
        self.batches: list[list[StubEncoded]] = []
        self.encode_calls: list[int] = []
        self.ran_after_release: list[str] = []
        self.failing: set[str] = set()
        self.failing_texts: set[str] = set()
        self.numeric: set[str] = set()
        self.deadly: set[str] = set()
        self.is_crowded = False
        self.cold: set[str] = set()
        self.unloadable: dict[str, BaseException] = {}
        self.unread: set[str] = set()
        self.unreadable: dict[str, ServerError] = {}
        self.pins: Counter[str] = Counter()
        self.fetched: list[str] = []
        self.load_gate = threading.Event()
        self.load_gate.set()
        self.loading = threading.Event()
        self.ran_without_pin: list[str] = []
        self._pins_lock = threading.Lock()
        self.short_results = 0
        self.short_encoded = 0
        self.gate = threading.Event()
        self.gate.set()
        self.encode_gate = threading.Event()
        self.encode_gate.set()
        self.running = threading.Event()
        self.encoding = threading.Event()

    @property
    def n_held(self) -> int:
        return sum(self.held.values())

    def add(self, key: str, config: AdapterConfig) -> None:
        self.adapters[key] = config

    def lease(self, key: str) -> StubLease:
        return StubLease(self, key)

    def encode(self, rows: Sequence[Row], leases: Sequence[StubLease]) -> list[StubEncoded | RowError]:
        self.encode_calls.append(len(rows))
        self.encoding.set()
        assert self.encode_gate.wait(60)
        if self.failing_texts & {row.text for row in rows}:
            raise ValueError("planted fault in encode")
        encoded = [self._encode(row, lease) for row, lease in zip(rows, leases, strict=True)]
        return encoded[: len(encoded) - self.short_encoded]

    @property
    def n_pinned(self) -> int:
        return sum(self.pins.values())

    def pin(self, lease: StubLease, rows: int = 1, *, again: bool = False) -> bool:
        with self._pins_lock:
            if lease.key in self.cold:
                return False
            self.pins[lease.key] += rows
            return True

    def fetch(self, lease: StubLease) -> None:
        self.loading.set()
        assert self.load_gate.wait(60)
        self.fetched.append(lease.key)
        if lease.key in self.unloadable:
            raise self.unloadable[lease.key]
        with self._pins_lock:
            self.cold.discard(lease.key)
            self.pins[lease.key] += 1

    def unpin(self, lease: StubLease) -> None:
        with self._pins_lock:
            self.pins[lease.key] -= 1
            assert self.pins[lease.key] >= 0

    def run(self, rows: Sequence[StubEncoded]) -> list[Result | RowError]:
        self.batches.append(list(rows))
        self.ran_without_pin += [row.lease.key for row in rows if not self.pins[row.lease.key]]
        self.running.set()
        assert self.gate.wait(60)
        keys = {row.lease.key for row in rows}
        if keys & self.deadly:
            raise SystemExit("planted death")
        if keys & self.failing:
            raise ValueError("planted fault in run")
        self.ran_after_release += [row.lease.key for row in rows if not row.lease.is_held]
        results = [self._run(row) for row in rows]
        return results[: len(results) - self.short_results]

    def _encode(self, row: Row, lease: StubLease) -> StubEncoded | RowError:
        text = row.text or ""
        if not text.strip():
            return RowError("BLANK_TEXT", "the text is blank", "text", "send at least one word")
        if len(text) > MAX_TEXT_CHARACTERS:
            return RowError("TEXT_TOO_LARGE", "the text is too large", "text")
        if lease.config.takes_pair and row.text_pair is None:
            return RowError("MISSING_PAIR", "this adapter takes pairs", "text_pair")
        n_tokens = len(text.split()) + 2
        most = lease.config.max_length
        if n_tokens > most and not row.truncate:
            return RowError("TOO_LONG", f"{n_tokens} tokens; at most {most}", "text")
        return StubEncoded(lease, text, min(n_tokens, most), n_tokens > most)

    def _run(self, row: StubEncoded) -> Result | RowError:
        key, config = row.lease.key, row.lease.config
        if key in self.numeric:
            return RowError("ADAPTER_NUMERIC_ERROR", "NaN")
        seed = zlib.crc32(f"{key} {row.text}".encode())
        logits = np.random.default_rng(seed).normal(size=config.num_labels).astype(np.float32)
        if config.problem_type == "regression":
            scores = np.empty(0, dtype=np.float32)
        elif config.problem_type == "multi_label_classification":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits) / np.exp(logits).sum()
        return Result(key, logits, scores, row.n_tokens, row.truncated, config)


class StubResolver:
    """Names given to `add`, in order of their versions; the last is active."""

    def __init__(self, engine: StubEngine) -> None:
        self.engine = engine
        self.generation = 0
        self.versions: dict[str, dict[int, str]] = {}
        self.resolved: list[str] = []
        self.route_keys: list[str | None] = []
        self.shadow: dict[str, int] = {}

    def add(self, name: str, config: AdapterConfig | None = None) -> str:
        """The sha256 of the new version."""
        self.generation += 1
        sha256 = sha256_of(self.generation)
        self.engine.add(sha256, config or config_of())
        versions = self.versions.setdefault(name, {})
        versions[max(versions, default=0) + 1] = sha256
        return sha256

    def lease(self, name: str, version: int) -> StubLease:
        if version not in self.versions[name]:
            raise VersionNotFoundError(f"adapter '{name}' has no version {version}")
        return self.engine.lease(self.versions[name][version])

    async def resolve(self, reference: Reference, min_generation: int | None, route_key: str | None = None) -> Resolved:
        name, version = reference.name, reference.version
        self.resolved.append(name)
        self.route_keys.append(route_key)
        if min_generation is not None and min_generation > self.generation:
            raise NotReadyError(f"generation {self.generation} is served, {min_generation} was asked for")
        if name not in self.versions:
            raise AdapterNotFoundError(f"no adapter '{name}'", hint="did you mean sst2?")
        wanted = version if version is not None else max(self.versions[name])
        if wanted not in self.versions[name]:
            raise VersionNotFoundError(f"adapter '{name}' has no version {wanted}")
        sha256 = self.versions[name][wanted]
        return Resolved(name, wanted, sha256, self.engine.lease(sha256), self.shadow.get(name))

    async def read(self, leases: Sequence[StubLease]) -> list[ServerError | None]:
        errors = [self.engine.unreadable.get(lease.key) for lease in leases]
        for lease, error in zip(leases, errors, strict=True):
            lease.is_read = error is None
        return errors
