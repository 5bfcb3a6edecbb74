"""What the engine has to reach, and whether it did: ratios of speeds within one run, the median of its rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.engine_outcome import (
    B0,
    B1,
    B3,
    BASE,
    ENGINE,
    FAN,
    FAN_OUT,
    FAN_ROWS,
    FEW,
    FLOOR,
    ONE,
    UNIFORM,
    Case,
    distinct_contest,
    registered_contest,
    tokens_contest,
)

BANK_BYTES = 1_300_000_000
EXACT_TEXTS = 10_000


@dataclass(frozen=True, slots=True)
class Target:
    """In `contest`, `system` answers at least `bound` times as many rows a second as `against`."""

    title: str
    contest: str
    system: str
    against: str
    bound: float
    bound_float32: float | None = None  # where it differs

    def bound_in(self, dtype: str) -> float:
        """The bound for a dtype by torch's name for it."""
        return self.bound if dtype != "float32" or self.bound_float32 is None else self.bound_float32


CPU_TARGETS = (
    Target("1,000 adapters vs B0", tokens_contest(2048), UNIFORM, B0, 0.92),
    Target("one adapter vs B0", tokens_contest(2048), ONE, B0, 0.96),
    Target("all-base rows vs B0", tokens_contest(2048), BASE, B0, 0.995),
    Target("10,000 registered vs 10", registered_contest(10_000), ENGINE, FEW, 0.98),
    Target("256 distinct vs 1", distinct_contest(256), ENGINE, ONE, 0.93),
    Target("B0 vs floor", tokens_contest(2048), B0, FLOOR, 0.60, bound_float32=0.85),
    Target("vs B1 at 64 distinct", distinct_contest(64), ENGINE, B1, 5),
    Target("vs B1 at 256 distinct", distinct_contest(256), ENGINE, B1, 8),
    Target("vs B3, 64 rows over 64 tasks", distinct_contest(64), ENGINE, B3, 8, bound_float32=2.5),
    Target("fan-out of 8", FAN, FAN_OUT, FAN_ROWS, 1.5),
)
CUDA_TARGETS = (
    Target("1,000 adapters vs B0 at 8k tokens", tokens_contest(8192), UNIFORM, B0, 0.97),
    Target("1,000 adapters vs B0 at 1k tokens", tokens_contest(1024), UNIFORM, B0, 0.92),
    Target("one adapter vs B0", tokens_contest(8192), ONE, B0, 0.985),
    Target("all-base rows vs B0", tokens_contest(8192), BASE, B0, 0.995),
    Target("10,000 registered vs 10", registered_contest(10_000), ENGINE, FEW, 0.98),
    Target("256 distinct vs 1", distinct_contest(256), ENGINE, ONE, 0.95),
    Target("B0 vs floor at 16k tokens", tokens_contest(16_384), B0, FLOOR, 0.50),
    Target("vs B1 at 64 distinct", distinct_contest(64), ENGINE, B1, 8),
    Target("vs B1 at 256 distinct", distinct_contest(256), ENGINE, B1, 15),
    Target("vs B3, 64 rows over 64 tasks", distinct_contest(64), ENGINE, B3, 10),
    Target("fan-out of 8", FAN, FAN_OUT, FAN_ROWS, 1.5),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """status: "met", "short" or "not measured"; figure: what was measured and what is asked for, "" if nothing was."""

    title: str
    status: str
    figure: str

    def __str__(self) -> str:
        return f"{self.status} {self.figure}".rstrip()


def judge(case: Case) -> list[Verdict]:
    """Every target of the case's device, in one order for all cases of a device."""
    targets = CUDA_TARGETS if case.device == "cuda" else CPU_TARGETS
    return [*(_judge_speed(case, target) for target in targets), _judge_exactness(case), _judge_memory(case)]


def targets_line(cases: Sequence[Case]) -> str:
    """All targets on one line; of several cases each figure says of which it is."""
    parts = []
    for verdicts in zip(*(judge(case) for case in cases), strict=True):
        if len(cases) == 1:
            said = str(verdicts[0])
        else:
            named = zip(cases, verdicts, strict=True)
            said = ", ".join(f"{verdict} [{case.backbone} {case.dtype}]" for case, verdict in named)
        parts.append(f"{verdicts[0].title}: {said}")
    return "targets: " + "; ".join(parts)


def _judge_speed(case: Case, target: Target) -> Verdict:
    outcome = case.outcomes.get(target.contest)
    ratio = None if outcome is None else outcome.ratio(target.system, target.against)
    if ratio is None:
        return _not_measured(target.title)
    bound = target.bound_in(case.dtype)
    figure = f"{ratio.median:.3g} (>= {bound:g}; quartiles {ratio.low:.3g} to {ratio.high:.3g})"
    return Verdict(target.title, "met" if ratio.median >= bound else "short", figure)


def _judge_exactness(case: Case) -> Verdict:
    title = f"exactness, mixed vs alone, {EXACT_TEXTS:,} texts"
    found = case.exactness
    if found is None or found.texts < EXACT_TEXTS:
        return _not_measured(title)
    met = found.worst <= found.tolerance and not found.flips
    figure = f"{found.worst:.1e} (<= {found.tolerance:g}), {found.flips} labels differ"
    return Verdict(title, "met" if met else "short", figure)


def _judge_memory(case: Case) -> Verdict:
    title = "memory of 1,000 BERT-base r48 adapters, bf16"
    if case.bank_bytes is None:
        return _not_measured(title)
    figure = f"{case.bank_bytes / 1e9:.3f} GB (<= {BANK_BYTES / 1e9:g} GB)"
    return Verdict(title, "met" if case.bank_bytes <= BANK_BYTES else "short", figure)


def _not_measured(title: str) -> Verdict:
    return Verdict(title, "not measured", "")
