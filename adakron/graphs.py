"""Small batches on CUDA as one launch: the encoder's forward captured as a graph for each bucket of token counts.

A small batch costs more to launch, operation by operation, than to compute. A graph repeats the launches of one forward
as they were captured: with the shapes, the addresses and the number of programs of that time. What differs from batch
to batch is therefore data, copied into the same place before each replay:

* Token counts are rounded up to a bucket. Tokens beyond the batch's belong to no row and no tile: whatever is computed
  for them is read by nobody.
* Work lists have the length that the fullest batch of the bucket needs; the rest of a list are tiles of nothing.
* Every shelf of adapters takes part in every layer, with a list of nothing where the batch has none of its rows. So one
  graph serves any mix, and an adapter that is new on its shelf, or a shelf that has grown and lies elsewhere, asks for
  no other graph: the kernels find weights by address, and addresses are data too.

Only a shelf of a new shape asks for new graphs. `prepare` captures them before the first adapter of that shape can be
asked for; until all of them are there, and for larger batches and those with shared lower layers, the same kernels are
launched one by one. Importing it needs triton.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adakron.bank import BankView, SiteShape
from adakron.encoder import PackedEncoder
from adakron.kernels.cuda import TritonKernels, TritonWork, shelves_of, stage_arrays, stage_capacity
from adakron.kernels.fused_adapter import ShelfTable
from adakron.kernels.tables import Tables
from adakron.plan import Plan

# From 512 on, no step adds more than a quarter: there a batch costs what it computes.
BUCKETS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
TOKENS_A_ROW = 4  # fewer, on average, and the batch takes the bucket of more tokens

Forward = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Graph:
    """hidden [bucket, D]: where `replay` writes what the inputs in `tables` give."""

    tables: Tables
    hidden: Tensor
    replay: Callable[[], None]


class GraphedEncoder:
    """A packed encoder whose small batches are replayed. buckets: token counts, rising.

    One call at a time, and its answer is to be read before the next; `prepare` may run meanwhile, in another thread.
    """

    path = "packed"

    def __init__(self, encoder: PackedEncoder, kernels: TritonKernels, buckets: Sequence[int] = BUCKETS) -> None:
        self.kernels_name = kernels.name
        self._encoder, self._kernels, self._buckets = encoder, kernels, tuple(buckets)
        self._graphs: dict[int, Graph] = {}
        self._shapes: tuple[SiteShape, ...] = ()
        self._running = threading.Lock()
        self._preparing = threading.Lock()

    @torch.inference_mode()
    def __call__(self, plan: Plan, view: BankView) -> Tensor:
        """Returns the last hidden state [T, D] in packed order of the plan's last stage."""
        with self._running:
            graph = self._graph_for(plan)
            if graph is None:
                return self._encoder(plan, view)
            (stage,) = plan.stages
            arrays = stage_arrays(stage, shelves_of(view, self._shapes), self._kernels.invariant)
            graph.tables.fill([plan.ids, plan.type_ids, plan.positions, *arrays])
            graph.replay()
            return graph.hidden[: stage.n_tokens]

    @torch.inference_mode()
    def prepare(self, view: BankView) -> None:
        """Compile and capture what a batch on the view's shelves may need; nothing where it was done before.

        Takes seconds for every shape of adapter that is new. Batches run on meanwhile: they wait for one capture at
        most, never for the compiler.
        """
        with self._preparing:
            self._kernels.compile(view)
            if self._graphs and set(view.shapes) <= set(self._shapes):
                return
            shelves, graphs = shelves_of(view, view.shapes), {}
            recorder = _Recorder(self._kernels.device)
            for bucket in reversed(self._buckets):  # the largest first: the others fit into its memory
                with self._running:
                    graphs[bucket] = self._capture(bucket, shelves, recorder)
            with self._running:
                self._graphs, self._shapes = graphs, view.shapes

    def _graph_for(self, plan: Plan) -> Graph | None:
        stage = plan.stages[0]
        if len(plan.stages) > 1 or not {group.shape for group in stage.groups} <= set(self._shapes):
            return None
        bucket = bucket_for(self._buckets, stage.n_tokens, len(stage.starts))
        return None if bucket is None else self._graphs.get(bucket)

    def _capture(self, bucket: int, shelves: Sequence[ShelfTable], recorder: "_Recorder") -> Graph:
        tokens = [np.zeros(bucket, np.int64)] * 3
        capacity = stage_capacity(shelves, bucket, bucket // TOKENS_A_ROW, self._kernels.invariant)
        tables = Tables.of([*tokens, *capacity], self._kernels.device)
        ids, type_ids, positions, *rest = tables.tensors
        work = TritonWork(self._kernels.heads, shelves, rest, self._kernels.invariant)

        def forward() -> Tensor:
            return self._encoder.run_layers(self._encoder.embed(ids, type_ids, positions), work, 0, None)

        return Graph(tables, *recorder(forward))


def bucket_for(buckets: Sequence[int], tokens: int, rows: int) -> int | None:
    """The smallest bucket with room for so many tokens and rows, of those that rise; None beyond the largest."""
    place = bisect_left(buckets, max(tokens, TOKENS_A_ROW * rows))
    return buckets[place] if place < len(buckets) else None


class _Recorder:
    """Captures forwards that never run at the same time: they share their memory but for what they return."""

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        if self._on_card:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> tuple[Tensor, Callable[[], None]]:
        """(answer, replay), the answer being overwritten by each replay. Without a card, a replay is a run."""
        if not self._on_card:
            answer = forward()

            def run() -> None:
                answer.copy_(forward())

            return answer, run
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            forward()  # libraries set themselves up in their first call, which no capture allows
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the card.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            answer = forward()
        return answer, graph.replay
