"""Many adapters, one resident backbone, one forward.

    engine = Engine.load()
    engine.add("sst2", "adapters/sst2")
    engine.classify([Row(adapter="sst2", text="a joy from start to end")])

A row passes four steps, which a server runs in threads of its own: `lease` counts a user of the adapter, `encode`
tokenises, `pin` or else `fetch` brings the adapter to the device, `run` computes a batch. Everything that can be wrong
with a row shows in `encode`. More adapters may be known than fit: see `residents.py`. Knows nothing of HTTP, versions
or time.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adakron.answers import answers_of
from adakron.artefact import Adapter
from adakron.backbone import DEFAULT, Backbone
from adakron.bank import AdapterBank, BankView, PackedAdapter
from adakron.classifier import classify, pool_packed
from adakron.config import Fingerprint
from adakron.encoder import KernelChoice, make_encoder
from adakron.encoding import EncodedRow, RowEncoder
from adakron.errors import (
    BackboneError,
    BankFullError,
    BaseMismatchError,
    GoldenMismatchError,
    NonFiniteError,
    UnknownAdapterError,
)
from adakron.linear import make_linear
from adakron.plan import make_plan
from adakron.precision import Dtype, choose_dtype
from adakron.resident import LEAST_READ_COST_S, Departure, Lease, Residency, Source, Tier
from adakron.residents import Residents
from adakron.rows import Result, Row, RowError

BATCH_TOKENS = 8192
GOLDEN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
NO_EFFECT = 1e-2
CPU_BUDGET_BYTES = 2**31
# Short, because rows of others wait while they run.
PROBES = ("Two days late.", "I loved this book!", "What does it cost?")
MOST_UNTOUCHED = 64

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class _Forward:
    """What a batch gave. pooled [B, D] float32, on the device, row order[n] of the batch at n; logits row by row."""

    pooled: Tensor
    order: Sequence[int]
    logits: Sequence[np.ndarray | None]

    def vectors(self) -> np.ndarray:
        """The pooled vectors [B, D] float32 on the host, in the order of the batch."""
        packed = self.pooled.cpu().numpy()
        vectors = np.empty_like(packed)
        vectors[self.order] = packed
        return vectors


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs.

    path          "packed", or "padded" for families that run as transformers' own model
    kernels       "native", "triton" or "eager": who computes what lies between the linear maps
    adapter_bytes of the bank, its free slots counted
    """

    backbone: str
    revision: str | None
    family: str
    hidden_size: int
    num_layers: int
    max_length: int
    device: str
    dtype: str
    path: str
    kernels: str
    batch_invariant: bool
    fingerprint: Fingerprint
    adapters: int
    adapter_bytes: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Proof that an adapter works here. no_effect: it moves the backbone's output by less than 1 % on the probes."""

    no_effect: bool
    examples: int


class Engine:
    """One backbone and a bank of adapters. Any method may be called from any thread; `run` does one batch at a time."""

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        dtype: torch.dtype,
        device_budget_bytes: int | None = None,
        *,
        host_budget_bytes: int = 0,
        batch_invariant: bool = False,
        kernels: KernelChoice = "auto",
    ) -> None:
        self.device, self.dtype = device, dtype
        self.bank = AdapterBank(backbone.hidden_size, backbone.num_hidden_layers, dtype, device, device_budget_bytes)
        self._encoder = make_encoder(backbone, dtype, device, kernels=kernels, invariant=batch_invariant)
        self._pooler = None if backbone.pooler is None else self._make_pooler(backbone.pooler, batch_invariant)
        self._encode = RowEncoder(backbone.tokenizer, backbone.max_length)
        roberta = backbone.model_type in ("roberta", "xlm-roberta")
        self._pad_id: int | None = backbone.model.config.pad_token_id if roberta else None
        # The backbone itself is not kept: a packed encoder holds its own copy of the weights.
        self._facts = EngineInfo(
            backbone=backbone.name,
            revision=backbone.revision,
            family=backbone.model_type,
            hidden_size=backbone.hidden_size,
            num_layers=backbone.num_hidden_layers,
            max_length=backbone.max_length,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            path=self._encoder.path,
            kernels=self._encoder.kernels_name,
            batch_invariant=batch_invariant,
            fingerprint=backbone.fingerprint,
            adapters=0,
            adapter_bytes=0,
        )
        self._residents = Residents(self.bank, self._pack, self._prepare, host_budget_bytes)
        self._prepare()
        self._run_lock = threading.Lock()
        self._untouched_vectors: dict[tuple[object, ...], np.ndarray] = {}

    @classmethod
    def load(
        cls,
        backbone: str = DEFAULT,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
        device_budget_bytes: int | Literal["auto"] | None = None,
        host_budget_bytes: int = 0,
        batch_invariant: bool = False,
        kernels: KernelChoice = "auto",
    ) -> "Engine":
        """Load a backbone by name (see `Backbone.load`) and get it ready.

        device   "auto": CUDA where there is one
        dtype    "auto": bfloat16 where the device is fast at it (CUDA; on a CPU, measured), else float32
        threads  torch's threads in this process; None leaves them alone
        device_budget_bytes  bound for the adapters on the device; None for no bound; "auto": 2 GiB on a CPU, half of
                             what is free on a GPU. What was announced and not added gives way to others there
        host_budget_bytes    bound for copies in host memory of what the device has no room for
        batch_invariant      a row's logits are the same to the last bit whatever its batch-mates; slower
        kernels  "auto": the fastest that run here, compiled now if need be; "eager": plain torch

        Raises BackboneError.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise BackboneError("device: no CUDA device here", hint='use device "cpu" or "auto"')
        loaded = Backbone.load(backbone)
        budget_bytes = _free_budget(chosen) if device_budget_bytes == "auto" else device_budget_bytes
        return cls(
            loaded,
            chosen,
            choose_dtype(dtype, chosen),
            budget_bytes,
            host_budget_bytes=host_budget_bytes,
            batch_invariant=batch_invariant,
            kernels=kernels,
        )

    def add(self, key: str, adapter: Adapter | str | Path) -> None:
        """Make an adapter, or the folder or file that holds one, answer to `key`; a former one is replaced at once.

        It is on the device when this returns, and stays there. Rows that hold a lease on the former one finish on it.
        Raises FormatError, ConfigError, BaseMismatchError, BankFullError; the engine is then as before.
        """
        if not isinstance(adapter, Adapter):
            path = Path(adapter)
            adapter = Adapter.from_folder(path) if path.is_dir() else Adapter.from_file(path)
        self._residents.put(key, adapter)

    def announce(self, key: str, source: Source) -> None:
        """Let `key` mean what `source` reads, which happens when it is asked for, each time it is not in memory."""
        self._residents.announce(key, source)

    def offer(self, key: str, adapter: Adapter, read_cost_s: float = LEAST_READ_COST_S) -> Tier:
        """An announced adapter that was just read, in `read_cost_s`: keep it where there is room without eviction.

        Returns where it is then. Raises UnknownAdapterError, BaseMismatchError.
        """
        return self._residents.offer(key, adapter, read_cost_s)

    def keep(self, keys: Collection[str]) -> None:
        """Of those that are known, never evict these from the device; all others may be evicted again."""
        self._residents.keep(keys)

    def remove(self, key: str) -> Departure:
        """Forget `key`; its slots are zeroed once its last lease is back: `.wait(s)` says what that freed.

        Raises UnknownAdapterError.
        """
        return self._residents.remove(key)

    def keys(self) -> tuple[str, ...]:
        """What is known, oldest first."""
        return self._residents.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._residents

    def lease(self, key: str | None) -> Lease:
        """Count one more user of `key`, or of the bare backbone for None. Raises UnknownAdapterError."""
        return self._residents.lease(key)

    @property
    def is_crowded(self) -> bool:
        """Whether the device has no free room left: another adapter there pushes one off."""
        return self._residents.is_crowded

    def read(self, lease: Lease) -> None:
        """Get a leased adapter's configuration, where it was never read (`lease.is_read`): rows need it to be encoded.

        Raises what its source raises, FormatError, ConfigError, BaseMismatchError.
        """
        self._residents.read(lease)

    def pin(self, lease: Lease, rows: int = 1, *, again: bool = False) -> bool:
        """Count rows on their way to `run`, if their adapter is on the device; its slots stay until they are unpinned.

        again  the caller holds a pin on it
        Returns False, and has counted nothing, where it is not there: `fetch` brings it.
        """
        return self._residents.pin(lease, rows, again=again)

    def fetch(self, lease: Lease, *, wait: bool = True) -> None:
        """Bring a leased adapter to the device and pin it for one row; others are evicted for it.

        wait  for pins of others to end, where every slot is pinned

        Raises what its source raises, FormatError, ConfigError, BaseMismatchError, BankFullError.
        """
        self._residents.fetch(lease, wait=wait)

    def unpin(self, lease: Lease) -> None:
        """A pinned row has been run, or never will be."""
        self._residents.unpin(lease)

    def tier(self, key: str) -> Tier | None:
        """Where an adapter is; None if it is not known."""
        return self._residents.tier(key)

    def residency(self) -> Residency:
        """What is where, and what happened so far."""
        return self._residents.figures()

    def encode(self, rows: Sequence[Row], leases: Sequence[Lease]) -> list[EncodedRow | RowError]:
        """Check and tokenise rows; leases[i] is rows[i]'s. A row's faults are found here, as a RowError in its place.

        Codes: INVALID_TEXT, BLANK_TEXT, TEXT_TOO_LARGE, MISSING_PAIR, UNEXPECTED_PAIR, TOO_LONG. Leases are kept; all
        must be read.
        """
        return self._encode(rows, leases)

    def run(self, rows: Sequence[EncodedRow]) -> list[Result | RowError]:
        """Run rows of any mix of adapters as one batch; answers in the order of the rows. All must be pinned.

        A row whose adapter gives NaN or infinity gets RowError ADAPTER_NUMERIC_ERROR; no other row is affected.
        """
        if not rows:
            return []
        with self._run_lock, torch.inference_mode():
            forward = self._forward(rows)
            # Rows without adapter are answered with their vectors; for the others nothing is brought to the host.
            vectors = forward.vectors() if any(row.lease.config is None for row in rows) else None
        return answers_of(rows, forward.logits, vectors)

    def classify(self, rows: Sequence[Row]) -> list[Result | RowError]:
        """Answer all rows, in batches of at most 8,192 tokens. An unknown adapter is a RowError in its row's place.

        Raises what reading an announced adapter raises, and BankFullError where the device has no room for one.
        """
        answers: list[Result | RowError | None] = [None] * len(rows)
        with self._leases(rows, answers) as leases:
            for lease in leases:
                if lease is not None and not lease.is_read:
                    self.read(lease)
            known = [n for n in range(len(rows)) if leases[n] is not None]
            encoded = self.encode([rows[n] for n in known], [lease for lease in leases if lease is not None])
            ready: list[tuple[int, EncodedRow]] = []
            for n, row in zip(known, encoded, strict=True):
                if isinstance(row, RowError):
                    answers[n] = row
                else:
                    ready.append((n, row))
            for tokens_fit in _cut(ready, BATCH_TOKENS):
                for batch in self._pinned(tokens_fit):
                    for (n, _), answer in zip(batch, self.run([row for _, row in batch]), strict=True):
                        answers[n] = answer
        return [answer for answer in answers if answer is not None]

    def check(self, adapter: Adapter) -> Admission:
        """Prove an adapter on this engine without making it visible.

        It must fit this backbone, give finite logits on fixed probe texts and reproduce its golden examples within
        1e-4 (float32) or 3e-2 (bfloat16) of max(1, max |logit|).
        Raises BaseMismatchError, NonFiniteError, GoldenMismatchError, BankFullError.
        """
        with self._residents.hidden(adapter) as lease:
            no_effect = self._probe(lease)
            self._check_examples(adapter, lease)
        return Admission(no_effect, len(adapter.expected))

    def info(self) -> EngineInfo:
        """What runs here, and how much of it."""
        return replace(self._facts, adapters=len(self._residents), adapter_bytes=self.bank.size_bytes)

    def _forward(self, rows: Sequence[EncodedRow], *, without_sites: bool = False) -> "_Forward":
        """Run the rows as one batch. without_sites: leave the encoder's layers as they are: heads alone."""
        view, placements = self._residents.view([row.lease for row in rows])
        if without_sites:
            placements = [None if one is None else replace(one, site_slot=0) for one in placements]
        plan = make_plan(
            [row.ids for row in rows],
            [row.type_ids for row in rows],
            placements,
            pad_id=self._pad_id,
            share_layers=self._encoder.path == "packed",
        )
        hidden = self._encoder(plan, view)
        configs = [rows[n].lease.config for n in plan.order]
        pooled = pool_packed(
            hidden,
            plan,
            ["mean" if c is None else c.pooling for c in configs],
            self._pooler,
            self._encoder.kernels_name,
        )
        invariant = self._facts.batch_invariant
        ordered = [placements[n] for n in plan.order]
        packed = classify(pooled, view, ordered, self._encoder.kernels_name, invariant=invariant)
        logits: list[np.ndarray | None] = [None] * len(rows)
        for packed_row, row in enumerate(plan.order):
            logits[row] = packed[packed_row]
        return _Forward(pooled, plan.order, logits)

    def _pack(self, adapter: Adapter) -> PackedAdapter:
        self._require_fit(adapter)
        return self.bank.pack(adapter)

    def _prepare(self) -> None:
        """Compile everything that the shelves as they are need: no request waits for a compiler."""
        self._encoder.prepare(BankView(self.bank))

    def _pinned(self, rows: list[tuple[int, EncodedRow]]) -> Iterator[list[tuple[int, EncodedRow]]]:
        """The rows in batches whose adapters are on the device together, pinned while the batch is out.

        What is there already is pinned first, so that no row evicts what a later one needs.
        """
        while rows:
            pinned: list[tuple[int, EncodedRow]] = []
            missing: list[tuple[int, EncodedRow]] = []
            later: list[tuple[int, EncodedRow]] = []
            try:
                for item in rows:
                    (pinned if self.pin(item[1].lease) else missing).append(item)
                for item in missing:
                    try:
                        self.fetch(item[1].lease, wait=not pinned)
                    except BankFullError:
                        if not pinned:
                            raise
                        later.append(item)
                    else:
                        pinned.append(item)
                yield pinned
            finally:
                for _, row in pinned:
                    self.unpin(row.lease)
            rows = later

    def _make_pooler(self, pooler: nn.Module, invariant: bool) -> Callable[[Tensor], Tensor]:
        """The checkpoint's dense map and tanh, [B, D] -> [B, D]."""
        weight, bias = (
            pooler.get_parameter(f"dense.{name}").to(self.device, self.dtype) for name in ("weight", "bias")
        )
        dense = make_linear(weight, bias, invariant=invariant)
        return lambda first: dense(first).tanh()

    def _probe(self, lease: Lease) -> bool:
        """Finite logits on the probe texts, or NonFiniteError; whether the adapter leaves the pooled vectors alone."""
        config = lease.config
        assert config is not None
        pair = PROBES[0] if config.takes_pair else None
        rows = [Row(text=text, text_pair=pair) for text in PROBES]
        encoded = [row for row in self.encode(rows, [lease] * len(rows)) if isinstance(row, EncodedRow)]
        with self._run_lock, torch.inference_mode():
            forward = self._forward(encoded)
            pooled, logits = forward.vectors(), forward.logits
        untouched = self._untouched(encoded, config.pooling)
        for values in logits:
            if values is None or not np.isfinite(values).all():
                raise NonFiniteError("the adapter gives NaN or infinity for plain texts", hint="retrain the adapter")
        return bool(np.abs(pooled - untouched).max() <= NO_EFFECT * np.abs(untouched).max())

    def _untouched(self, encoded: list[EncodedRow], pooling: str) -> np.ndarray:
        """What the bare backbone makes of these rows, [B, D]; computed once, as it never changes."""
        key = (pooling, *(tuple(row.ids) for row in encoded))
        vectors = self._untouched_vectors.get(key)
        if vectors is None:
            with self._run_lock, torch.inference_mode():
                vectors = self._forward(encoded, without_sites=True).vectors()
            if len(self._untouched_vectors) < MOST_UNTOUCHED:  # adapters differ in where they cut texts
                self._untouched_vectors[key] = vectors
        return vectors

    def _check_examples(self, adapter: Adapter, lease: Lease) -> None:
        examples = adapter.expected
        encoded = self.encode([Row(text=e.text, text_pair=e.text_pair) for e in examples], [lease] * len(examples))
        tolerance = GOLDEN_TOLERANCE[self.dtype]
        # One batch: it takes a quarter of the time of eight, which rows of others have to wait for.
        run = iter(self.run([row for row in encoded if isinstance(row, EncodedRow)]))
        answers = [row if isinstance(row, RowError) else next(run) for row in encoded]
        for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
            if isinstance(answer, RowError):
                raise GoldenMismatchError(f"golden example {number}: {answer.message}")
            expected = np.asarray(example.logits, dtype=np.float32)
            bound = tolerance * max(1.0, float(np.abs(expected).max()))
            worst = float(np.abs(answer.logits - expected).max())
            if worst > bound:
                raise GoldenMismatchError(
                    f"golden example {number}: logits differ by {worst:.3g}; {bound:.3g} is allowed in {self.dtype}",
                    hint="exported for another factor order, head or backbone? or its examples are stale",
                )

    def _require_fit(self, adapter: Adapter) -> None:
        theirs, ours = adapter.config.base_fingerprint, self._facts.fingerprint
        if theirs != ours:
            parts = ("config", "weights", "tokenizer")
            other = [part for part in parts if getattr(theirs, f"{part}_sha256") != getattr(ours, f"{part}_sha256")]
            raise BaseMismatchError(
                f"made for {adapter.config.base_model_name_or_path} (another {' and '.join(other)}); "
                f"this engine runs {self._facts.backbone}",
                hint="train the adapter on this backbone, or serve it on its own",
            )
        if adapter.config.pooling == "pooler" and self._pooler is None:
            raise BaseMismatchError("the adapter pools with the backbone's pooler; this checkpoint holds none")

    @contextmanager
    def _leases(self, rows: Sequence[Row], answers: list[Result | RowError | None]) -> Iterator[list[Lease | None]]:
        """A lease for each row; None, and an error in `answers`, where its adapter is unknown. All are given back."""
        leases: list[Lease | None] = []
        try:
            for n, row in enumerate(rows):
                try:
                    leases.append(self.lease(row.adapter))
                except UnknownAdapterError as error:
                    leases.append(None)
                    answers[n] = RowError(error.code, str(error), "adapter", error.hint)
            yield leases
        finally:
            for lease in leases:
                if lease is not None:
                    lease.release()


def _free_budget(device: torch.device) -> int:
    """Bytes for adapters where nobody set any; batches need the other half of a GPU."""
    if device.type == "cuda":
        free_bytes: int = torch.cuda.mem_get_info(device)[0]
        return free_bytes // 2
    return CPU_BUDGET_BYTES


def _cut(rows: Sequence[tuple[int, EncodedRow]], budget_tokens: int) -> Iterator[list[tuple[int, EncodedRow]]]:
    """Rows by length into batches within the budget: rows of similar length cost the least padding."""
    batch: list[tuple[int, EncodedRow]] = []
    tokens = 0
    for item in sorted(rows, key=lambda item: item[1].n_tokens):
        if batch and tokens + item[1].n_tokens > budget_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += item[1].n_tokens
    if batch:
        yield batch
