"""One layer's work for the fused adapter as plain arrays, which any process can run and the oracle can answer."""

from dataclasses import dataclass, field

import numpy as np
import torch

from adakron.bank import SiteShape
from adakron.kernels.interface import Norm
from adakron.kernels.tiles import Passes, Segment
from tests.reference import kron_forward

LAYERS = 3
EPS = 1e-3  # large enough that a forgotten eps shows


@dataclass(frozen=True)
class Work:
    """The arrays are float32, their values exact in `dtype`. Shelves hold [S, layers, ...]; slot 0 is unlike zero."""

    dtype: str
    x: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    shelves: list[tuple[SiteShape, dict[str, np.ndarray], list[Segment]]] = field(default_factory=list)
    layer: int = 1


def make_work(
    width: int,
    n_tokens: int,
    shelves: list[tuple[SiteShape, list[Segment]]],
    *,
    dtype: str = "float32",
    layer: int = 1,
    seed: int = 0,
) -> Work:
    generator = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        values = torch.from_numpy(scale * generator.standard_normal(shape))
        return values.to(getattr(torch, dtype)).float().numpy()

    stacked = []
    for shape, segments in shelves:
        slots, layers = 1 + max(segment.slot for segment in segments), LAYERS - shape.first_layer
        rows, bottleneck = shape.factor + shape.quotient, shape.factor * shape.quotient
        tensors = {
            "down": draw(slots, layers, rows, width, scale=width**-0.5),
            "down_bias": draw(slots, layers, rows, scale=0.5),
            "up": draw(slots, layers, bottleneck, width, scale=bottleneck**-0.5),
            "up_bias": draw(slots, layers, width, scale=0.5),
        }
        stacked.append((shape, tensors, segments))
    return Work(dtype, draw(n_tokens, width), draw(n_tokens, width), 1 + draw(width), draw(width), stacked, layer)


def run(work: Work, device: str) -> np.ndarray:
    """Every launch of the layer: [T, D] float32. What no launch writes is NaN."""
    from adakron.kernels.fused_adapter import TILE_TOKENS, Site, adapt_add_norm, shelf_table

    dtype = getattr(torch, work.dtype)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device, dtype)

    x, residual, norm = tensor(work.x), tensor(work.residual), Norm(tensor(work.weight), tensor(work.bias), EPS)
    out = torch.full_like(x, float("nan"))
    shelves = {shape: {name: tensor(values) for name, values in tensors.items()} for shape, tensors, _ in work.shelves}
    sites = {}
    for shape, tensors in shelves.items():
        table = shelf_table(shape, tensors)
        addresses = torch.from_numpy(table.addresses).to(device)
        if shape.first_layer <= work.layer:
            sites[shape] = Site(table, addresses[work.layer - shape.first_layer])
    groups = [(shape, segments) for shape, _, segments in work.shelves]
    for launch in Passes(groups, len(x), tile_tokens=TILE_TOKENS).at(work.layer):
        site = None if launch.shape is None else sites[launch.shape]
        adapt_add_norm(x, residual, norm, torch.from_numpy(launch.tiles).to(device), site, out)
    return out.float().cpu().numpy()


def oracle(work: Work) -> np.ndarray:
    """Token by token in float64: kron_forward, then the residual, then the norm."""
    slots: dict[int, tuple[SiteShape, dict[str, np.ndarray], int]] = {}
    for shape, tensors, segments in work.shelves:
        for slot, begin, end in segments:
            if slot and work.layer >= shape.first_layer:
                slots |= dict.fromkeys(range(begin, end), (shape, tensors, slot))
    rows = []
    for token, x in enumerate(work.x.astype(np.float64)):
        if token in slots:
            shape, tensors, slot = slots[token]
            one = {name: t[slot, work.layer - shape.first_layer].astype(np.float64) for name, t in tensors.items()}
            factors = {
                "a2.weight": one["down"][: shape.factor],
                "a2.bias": one["down_bias"][: shape.factor],
                "a1.weight": one["down"][shape.factor :],
                "a1.bias": one["down_bias"][shape.factor :],
                "up.weight": one["up"].T,
                "up.bias": one["up_bias"],
            }
            x = kron_forward(x, factors, "a2_a1")
        y = x + work.residual[token].astype(np.float64)
        rows.append((y - y.mean()) / np.sqrt(y.var() + EPS) * work.weight + work.bias)
    return np.stack(rows)
