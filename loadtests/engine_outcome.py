"""What the engine benchmark measured, as plain data, and the names by which it is found again."""

from dataclasses import dataclass, field
from typing import Any

from loadtests.engine_contest import Round, Spread, seconds_of, speed_ratio

FLOOR = "floor"
B0 = "B0 bare backbone"
B1 = "B1 PEFT mixed batch"
B2 = "B2 split and loop"
B3 = "B3 pipeline per task"
B4 = "B4 Ray multiplexed"
B5 = "B5 engine, padded"
ENGINE = "engine"  # as many different adapters as the contest says
UNIFORM = "engine, uniform"
ZIPF = "engine, Zipf 1.0"
ONE = "engine, one adapter"
BASE = "engine, base rows"
FEW = "engine, 10 registered"
FAN_ROWS = "engine, 8 texts"
FAN_OUT = "engine, 1 text"
FAN = "fan-out to 8"
EAGER = "engine, plain torch"
INVARIANT = "engine, batch-invariant"
WAYS = "64 adapters, three ways"
RAY = "Ray, 64 tasks"

# What can be measured by itself: fields of `engine_plan.Scale`, and the contest that needs Ray.
PARTS = ("tokens", "distinct", "bottlenecks", "registered", "fan_out", "ways", "exact_texts", "bank", "ray")


def tokens_contest(n_tokens: int) -> str:
    """Mixes of adapters in batches of that many tokens."""
    return f"{n_tokens} tokens"


def distinct_contest(distinct: int) -> str:
    """That many different adapters in a batch."""
    return f"{distinct} distinct"


def tasks_contest(rows_per_task: int) -> str:
    """64 rows over fewer tasks."""
    return f"{rows_per_task} rows a task"


def bottleneck_contest(bottleneck: int) -> str:
    """64 adapters of that r."""
    return f"r = {bottleneck}"


def registered_contest(registered: int) -> str:
    """That many adapters resident, against 10."""
    return f"{registered} registered"


@dataclass(frozen=True, slots=True)
class Entrant:
    """One system in a contest. working_bytes: peak of one run above what is held anyway, None if not measured."""

    system: str
    rows: int
    n_tokens: int
    distinct: int
    registered: int
    working_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contest: who took part, and the seconds of each round."""

    contest: str
    entrants: tuple[Entrant, ...]
    rounds: tuple[Round, ...]

    def seconds(self, system: str) -> Spread:
        """Raises ValueError for a system that took no part."""
        return seconds_of(self.rounds, system)

    def ratio(self, system: str, against: str) -> Spread | None:
        """How many times as many rows a second `system` answers as `against`; None if one of them took no part."""
        return speed_ratio(self.rounds, system, against)


@dataclass(frozen=True, slots=True)
class Exactness:
    """Rows in mixed batches against the same rows alone.

    worst  the largest difference of a logit, as a share of max(1, max |logit|) of its row
    flips  rows with another best label, though the best two were further apart than twice the tolerance
    """

    texts: int
    worst: float
    flips: int
    tolerance: float


@dataclass(slots=True)
class Case:
    """Everything measured for one backbone in one dtype.

    kernels     the engine's, by their name in `Engine.info()`
    bank_bytes  of 1,000 resident adapters of BERT-base, r = 48, in bfloat16
    notes       what was left out, and why
    """

    backbone: str
    dtype: str
    device: str
    trace: str
    kernels: str = "eager"
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    exactness: Exactness | None = None
    bank_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON: a point for each system of each contest, with rates, ratio to B0 (null without B0) and memory."""
        return {
            "backbone": self.backbone,
            "dtype": self.dtype,
            "device": self.device,
            "trace": self.trace,
            "kernels": self.kernels,
            "points": [_point(outcome, entrant) for outcome in self.outcomes.values() for entrant in outcome.entrants],
            "exactness": None
            if self.exactness is None
            else {
                "texts": self.exactness.texts,
                "worst": self.exactness.worst,
                "flips": self.exactness.flips,
                "tolerance": self.exactness.tolerance,
            },
            "bank_bytes_1000_bert_base": self.bank_bytes,
            "notes": self.notes,
        }


def _point(outcome: Outcome, entrant: Entrant) -> dict[str, Any]:
    seconds = outcome.seconds(entrant.system)
    ratio = outcome.ratio(entrant.system, B0)
    return {
        "contest": outcome.contest,
        "system": entrant.system,
        "rows": entrant.rows,
        "tokens": entrant.n_tokens,
        "distinct_adapters": entrant.distinct,
        "registered_adapters": entrant.registered,
        "runs": seconds.count,
        "seconds": {"median": seconds.median, "q1": seconds.low, "q3": seconds.high},
        "rows_per_s": entrant.rows / seconds.median,
        "tokens_per_s": entrant.n_tokens / seconds.median,
        "ratio_to_b0": None if ratio is None else {"median": ratio.median, "q1": ratio.low, "q3": ratio.high},
        "peak_working_bytes": entrant.working_bytes,
    }
