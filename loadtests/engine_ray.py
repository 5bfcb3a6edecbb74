"""B4: many adapters with what Ray Serve has for it: `@serve.multiplexed`, `@serve.batch`, one replica.

Importing this module imports ray. The replica does with a batch what B2 does; the rows reach it through a handle, not
through HTTP, which spares it the proxy.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import ray
import torch
from ray import serve

from adakron import Adapter, Backbone
from loadtests.engine_contest import Run
from loadtests.engine_machine import keep_freed_memory
from loadtests.engine_rivals import SplitLoop
from loadtests.engine_trace import Batch, Ids

APPLICATION = "engine-benchmark"
BATCH_ROWS = 64
BATCH_WAIT_S = 0.005
MODELS_PER_REPLICA = 1000


class Replica:
    """Adapter number n is the model with id str(n)."""

    def __init__(self, backbone: str, adapters: Sequence[Adapter], dtype: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._loop = SplitLoop(Backbone.load(backbone), adapters, getattr(torch, dtype), torch.device(device))

    async def __call__(self, ids: Ids) -> np.ndarray:
        number = await self.load(serve.get_multiplexed_model_id())
        answer: np.ndarray = await self.infer((number, ids))
        return answer

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)  # type: ignore[untyped-decorator]  # Ray gives it no types
    async def load(self, model_id: str) -> int:
        """The adapter of that id, loaded."""
        self._loop.load(int(model_id))
        return int(model_id)

    @serve.batch(max_batch_size=BATCH_ROWS, batch_wait_timeout_s=BATCH_WAIT_S)
    async def infer(self, rows: list[tuple[int, Ids]]) -> list[np.ndarray]:
        """Logits of every row. Ray calls this with rows of one adapter: it splits its batches by model id."""
        batch = Batch(tuple(ids for _, ids in rows), tuple(number for number, _ in rows))
        with ExitStack() as held:
            answers: list[np.ndarray] = self._loop.prepare(batch, held)()
            return answers


class RayMultiplexed:
    """A Ray of its own, on this machine, until `close`. backbone: its name, for `Backbone.load` in the replica.

    Raises RuntimeError for a replica that does not start.
    """

    def __init__(
        self, backbone: str, adapters: Sequence[Adapter], dtype: torch.dtype, device: torch.device, threads: int
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="Disabled")
        options = {"num_cpus": min(threads, os.cpu_count() or 1), "num_gpus": 1 if device.type == "cuda" else 0}
        deployment: Any = serve.deployment(
            Replica,
            max_ongoing_requests=MODELS_PER_REPLICA,
            max_constructor_retry_count=1,  # what fails once fails again: Ray's default is to try twenty times
            ray_actor_options=options,
        )
        dtype_name = str(dtype).removeprefix("torch.")
        self._handle: Any = serve.run(
            deployment.bind(backbone, list(adapters), dtype_name, str(device), threads),
            name=APPLICATION,
            route_prefix=None,
        )

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        handles = {
            number: self._handle.options(multiplexed_model_id=str(number)) for number in sorted(set(batch.adapters))
        }

        def run() -> list[Any]:
            replies = [handles[number].remote(ids) for number, ids in zip(batch.adapters, batch.ids, strict=True)]
            return [reply.result() for reply in replies]

        return run

    def close(self) -> None:
        """Stop the replica and Ray."""
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray gives it no types
        ray.shutdown()
