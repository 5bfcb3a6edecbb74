"""Batches of tiny encoders for the CUDA kernels: made from plain values, so that any process can run them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from adakron import AdaKronConfig
from adakron.backbone import Backbone
from adakron.bank import AdapterBank, BankView, Placement
from adakron.encoder import PackedEncoder
from adakron.kernels.eager import EagerKernels
from adakron.plan import Plan, make_plan
from tests.tiny import tiny_adapter, tiny_backbone

# Three shelves; the first holds several slots, and both factor orders.
CONFIGS = (
    AdaKronConfig(12, 4),
    AdaKronConfig(12, 4, "a1_a2"),
    AdaKronConfig(20, 4, first_layer=1),
    AdaKronConfig(10, 2, first_layer=2),
    AdaKronConfig(12, 4),
)

Text = tuple[int, ...]
Rows = Sequence[tuple[Text, int | None]]  # tokens, and the number of the adapter in CONFIGS


@dataclass(frozen=True)
class World:
    """A backbone with CONFIGS in its bank."""

    backbone: Backbone
    bank: AdapterBank
    placements: tuple[Placement, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def heads(self) -> int:
        return int(self.backbone.model.config.num_attention_heads)

    def plan(self, rows: Rows) -> Plan:
        ids = [np.array(text, dtype=np.int64) for text, _ in rows]
        types = self.backbone.model.config.model_type == "bert"
        type_ids = [(np.arange(len(text)) > len(text) // 2).astype(np.int64) * types for text in ids]
        placements = [None if number is None else self.placements[number] for _, number in rows]
        roberta = self.backbone.model_type == "roberta"
        return make_plan(ids, type_ids, placements, pad_id=self.backbone.model.config.pad_token_id if roberta else None)

    def packed(self, kernels, *, invariant: bool = False) -> PackedEncoder:
        return PackedEncoder(self.backbone.model, self.dtype, self.device, kernels, invariant=invariant)

    def triton(self, *, invariant: bool = False):
        from adakron.kernels.cuda import TritonKernels

        width = self.backbone.hidden_size
        return TritonKernels(self.heads, width, self.dtype, self.device, invariant=invariant)


def make_world(family: str, dtype: str = "float32", device: str = "cpu", adapters: int = len(CONFIGS)) -> World:
    backbone = tiny_backbone(family)
    where, kind = torch.device(device), getattr(torch, dtype)
    bank = AdapterBank(backbone.hidden_size, backbone.num_hidden_layers, kind, where)
    configs = enumerate(CONFIGS[:adapters])
    placements = tuple(bank.add(tiny_adapter(backbone, seed=n, adakron=config)) for n, config in configs)
    return World(backbone, bank, placements, kind, where)


the_world = cache(make_world)


def text(length: int, seed: int) -> Text:
    return tuple(np.random.default_rng(seed).integers(4, 60, length).tolist())


def by_row(hidden: torch.Tensor, plan: Plan) -> list[np.ndarray]:
    """[length, D] float32 of each row, in the order in which the rows were given."""
    last, states = plan.stages[-1], hidden.float().cpu().numpy()
    rows: list[np.ndarray | None] = [None] * len(plan.order)
    for row, start, length in zip(plan.order, last.starts, last.lengths, strict=True):
        rows[row] = states[start : start + length].copy()
    return rows


@torch.inference_mode()
def run_eager(family: str, rows: Rows, dtype: str, device: str) -> list[np.ndarray]:
    """Plain torch."""
    world = the_world(family, dtype, device)
    plan = world.plan(rows)
    encoder = world.packed(EagerKernels(world.heads, world.dtype, world.device))
    return by_row(encoder(plan, BankView(world.bank)), plan)


@torch.inference_mode()
def run_triton(family: str, rows: Rows, dtype: str, device: str, invariant: bool = False) -> list[np.ndarray]:
    """The CUDA kernels, launched one by one."""
    world = the_world(family, dtype, device)
    plan = world.plan(rows)
    return by_row(
        world.packed(world.triton(invariant=invariant), invariant=invariant)(plan, BankView(world.bank)), plan
    )


@torch.inference_mode()
def run_graphed(family: str, batches: Sequence[Rows], dtype: str, device: str, buckets=(64, 128)):
    """One batch after another as graphs: for each its rows, and whether a graph was replayed.

    The kernels are batch-invariant. Padding, which repeats token 0, is NaN from its embedding on.
    """
    world = the_world(family, dtype, device)
    encoder, launched = graphed(world, buckets)
    view = BankView(world.bank)
    encoder.prepare(view)
    answers = []
    for rows in batches:
        before, plan = len(launched), world.plan(rows)
        answers.append((by_row(encoder(plan, view), plan), len(launched) == before))
    return answers


def graphed(world: World, buckets):
    """The encoder, and a list that grows with every stage that is launched without a graph."""
    from adakron.graphs import GraphedEncoder

    kernels, launched = world.triton(invariant=True), []
    begin = kernels.begin
    packed = world.packed(kernels, invariant=True)
    packed.embeddings = replace(packed.embeddings, words=packed.embeddings.words.clone())
    packed.embeddings.words[0] = float("nan")
    encoder = GraphedEncoder(packed, kernels, buckets)
    kernels.compile(BankView(world.bank))
    kernels.begin = lambda stage, view: launched.append(stage) or begin(stage, view)
    return encoder, launched


@torch.inference_mode()
def run_through_changes(device: str) -> list[tuple[list[np.ndarray], list[np.ndarray], bool]]:
    """(found, expected, replayed) of one batch while its adapters' shelf moves, then while another shape comes."""
    rows = [(text(9, 1), 0), (text(30, 2), None)]
    world = make_world("bert", device=device, adapters=1)
    encoder, launched = graphed(world, (64,))
    plan = world.plan(rows)

    def state():
        before, view = len(launched), BankView(world.bank)
        found, replayed = by_row(encoder(plan, view), plan), len(launched) == before
        one_by_one = world.packed(world.triton(invariant=True), invariant=True)
        return found, by_row(one_by_one(plan, view), plan), replayed

    encoder.prepare(BankView(world.bank))
    states = [state()]
    shelf = world.bank.sites[world.placements[0].site]
    former = [tensor.data_ptr() for tensor in shelf.tensors.values()]
    held = dict(shelf.tensors)  # so that the new tensors must lie elsewhere
    while shelf.tensors["up"].data_ptr() == former[2]:
        world.bank.add(tiny_adapter(world.backbone, seed=99, adakron=CONFIGS[0]))
    for tensor in held.values():
        tensor.fill_(float("nan"))
    states.append(state())
    other = world.bank.add(tiny_adapter(world.backbone, seed=7, adakron=CONFIGS[2]))
    world = replace(world, placements=(*world.placements, other))
    plan = world.plan([*rows, (text(5, 3), 1)])
    states.append(state())
    encoder.prepare(BankView(world.bank))
    states.append(state())
    return states


def run_engine(kernels: str, device: str) -> list[np.ndarray]:
    """Logits of mixed rows out of a whole engine. Without a card the CUDA kernels are put in where it would choose."""
    from adakron import Engine
    from adakron.graphs import GraphedEncoder
    from tests.adakron.test_engine import logits_of, rows_for, zoo

    world = the_world("bert", "float32", device)
    if kernels == "eager":
        engine = Engine(world.backbone, world.device, world.dtype, kernels="eager")
    elif device == "cuda":
        engine = Engine(world.backbone, world.device, world.dtype)
        assert engine.info().kernels == "triton"
    else:
        engine = Engine(world.backbone, world.device, world.dtype, kernels="eager")
        triton = world.triton()
        engine._encoder = GraphedEncoder(world.packed(triton), triton, (128,))
    adapters = zoo(world.backbone)
    for name, adapter in adapters.items():
        engine.add(name, adapter)
    engine._encoder.prepare(BankView(engine.bank))
    few, many = rows_for(adapters, 5, seed=3), rows_for(adapters, 9, seed=4)
    return [logits for rows in (few, many) for logits in logits_of(engine.classify(rows))]
