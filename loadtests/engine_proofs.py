"""What the engine benchmark measures beside speed: exactness of mixed batches, and the memory of a full bank."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from adakron import AdaKronConfig, AdapterConfig, Engine
from adakron.bank import AdapterBank
from adakron.config import Fingerprint
from adakron.encoding import EncodedRow
from loadtests.engine_outcome import Exactness
from loadtests.engine_systems import encode, logits_of, random_adapters
from loadtests.engine_trace import Batch, Trace

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def measure_exactness(engine: Engine, keys: Sequence[str], trace: Trace, texts: int, budget_tokens: int) -> Exactness:
    """Rows for any of `keys`, in batches of at most `budget_tokens`, against each of them run alone."""
    batch = Batch(trace.rows(texts), trace.uniform(texts, len(keys)))
    tolerance, worst, flips = TOLERANCES[engine.dtype], 0.0, 0
    with ExitStack() as held:
        rows = encode(engine, batch, [keys[number] for number in batch.adapters], held)
        for part in _cut(rows, budget_tokens):
            for row, mixed in zip(part, engine.run(part), strict=True):
                alone = logits_of(engine.run([row])[0])
                difference, flipped = compare(logits_of(mixed), alone, tolerance)
                worst, flips = max(worst, difference), flips + flipped
    return Exactness(texts, worst, flips, tolerance)


def compare(mixed: np.ndarray, alone: np.ndarray, tolerance: float) -> tuple[float, bool]:
    """(largest difference as a share of max(1, max |logit|), whether a clear best label changed) of two [L] float32.

    The best label is clear where it leads the second by more than twice the tolerance, on that scale.
    """
    scale = max(1.0, float(np.abs(alone).max()))
    second, best = np.sort(alone)[-2:]
    clear = float(best - second) > 2 * tolerance * scale
    return float(np.abs(mixed - alone).max()) / scale, clear and bool(mixed.argmax() != alone.argmax())


def bert_base_bank_bytes(device: torch.device, count: int = 1000) -> int:
    """Bytes that a bank takes for `count` adapters of BERT-base, r = 48, bfloat16, heads of 2 to 20 labels."""
    digest = "0" * 64
    template = AdapterConfig(
        adakron=AdaKronConfig(bottleneck=48),
        hidden_size=768,
        num_hidden_layers=12,
        base_model_name_or_path="bert-base",
        base_fingerprint=Fingerprint(digest, digest, digest),
        label_names=("no", "yes"),
    )
    bank = AdapterBank(768, 12, torch.bfloat16, device)
    adapters = random_adapters(template)
    for number in range(count):
        bank.add(adapters[number % len(adapters)])
    return bank.size_bytes


def _cut(rows: Sequence[EncodedRow], budget_tokens: int) -> Iterator[list[EncodedRow]]:
    """Consecutive rows of at most budget_tokens together, one at least."""
    part: list[EncodedRow] = []
    used = 0
    for row in rows:
        if part and used + row.n_tokens > budget_tokens:
            yield part
            part, used = [], 0
        part.append(row)
        used += row.n_tokens
    if part:
        yield part
