"""All that the users of one run share: what is on the server, what to send, how to judge it, what was measured."""

import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from loadtests.artefacts import SignatureMaker, find_base
from loadtests.checker import Checker, Verdict
from loadtests.registrar import Registrar
from loadtests.samples import Outcome, Sample
from loadtests.targets import Target, list_targets
from loadtests.texts import Texts
from loadtests.workload import Workload

CHANGING_NAMES = 4
EXAMPLES = 20


class World:
    """The state of one run; every user of it runs in the same thread."""

    def __init__(self, targets: list[Target], texts: Texts, registrar: Registrar) -> None:
        self.targets = targets
        self.registrar = registrar
        self.workload = Workload(targets, texts, registrar.live)
        self.checker = Checker(targets, registrar.timelines)
        self.samples: list[Sample] = []
        self.faults: Counter[str] = Counter()
        self.wrong_rows = 0
        self.wrong_examples: list[str] = []
        self.started_s = time.monotonic()
        self._cpu_before_s = _cpu_s()

    @classmethod
    def prepare(cls, url: str, artefacts: Path, texts: Texts) -> "World":
        """Look at the server, make the artefacts to register, and record the answers to the probes.

        Raises httpx.HTTPError if the server does not answer as it should, ValueError or FileNotFoundError if there is
        nothing to ask or nothing to register.
        """
        maker = SignatureMaker(find_base(artefacts).read_bytes())
        run = f"{time.time_ns() // 1_000_000:x}"
        registrar = Registrar(maker, [f"load/{run}-{number}" for number in range(CHANGING_NAMES)])
        with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
            world = cls(list_targets(client), texts, registrar)
            for call in world.workload.probes():
                world.checker.learn(call, client.post("/v1/classify", json=call.body).raise_for_status().json())
        world.start_clock()
        return world

    def start_clock(self) -> None:
        """The run begins now: what came before was preparation."""
        self.started_s = time.monotonic()
        self._cpu_before_s = _cpu_s()

    def note(self, verdict: Verdict, status: int) -> Outcome:
        """Count a verdict, and name it in one word."""
        if verdict.wrong_rows:
            self.wrong_rows += len(verdict.wrong_rows)
            self.wrong_examples += verdict.wrong_rows[: EXAMPLES - len(self.wrong_examples)]
            return "wrong"
        if verdict.fault:
            self.faults[verdict.fault[:300]] += 1
            return "refused" if status == 429 else "failed"
        return "absent" if verdict.is_absent else "ok"

    def outcome(self, exceptions: list[str]) -> dict[str, Any]:
        """What the samples do not say; `exceptions` are those that users raised, which count as no request at all."""
        return {
            "adapters": len(self.targets),
            "has_pairs": self.workload.has_pairs,
            "artefacts_made": self.registrar.made,
            "wrong_rows": self.wrong_rows,
            "wrong_examples": self.wrong_examples,
            "faults": dict(self.faults.most_common(EXAMPLES)),
            "exceptions": exceptions[:EXAMPLES],
            "generator_cpu_share": round((_cpu_s() - self._cpu_before_s) / (time.monotonic() - self.started_s), 3),
        }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
