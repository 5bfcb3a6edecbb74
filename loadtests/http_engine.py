"""The engine alone, in this process and loaded as a replica's is: texts in, answers out. HTTP is held against it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from adakron import Engine, Result, Row
from loadtests.engine_machine import keep_freed_memory


class EngineAlone:
    """threads: of torch, as a replica has. adapters: name -> the folder of its artefact."""

    def __init__(self, threads: int, adapters: Mapping[str, Path]) -> None:
        keep_freed_memory()
        self._engine = Engine.load(threads=threads, device_budget_bytes="auto")
        for name, folder in adapters.items():
            self._engine.add(name, folder)

    def classify(self, calls: Sequence[tuple[str, Sequence[str]]], seconds: float) -> tuple[float, list[float]]:
        """Calls of (adapter, texts), one after the other and from the first again: seconds in all, and each call's.

        Raises ValueError for a row without an answer: a benchmark must not count it.
        """
        latencies_s: list[float] = []
        began_s = now_s = time.perf_counter()
        while now_s - began_s < seconds:
            adapter, texts = calls[len(latencies_s) % len(calls)]
            call_s = time.perf_counter()
            answers = self._engine.classify([Row(adapter=adapter, text=text) for text in texts])
            if not all(isinstance(answer, Result) for answer in answers):
                raise ValueError(f"a row failed: {answers}")
            now_s = time.perf_counter()
            latencies_s.append(now_s - call_s)
        return now_s - began_s, latencies_s
