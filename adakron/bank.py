"""Resident adapters: stacked tensors, one slot an adapter.

A shelf holds all adapters of one shape, so that a batch reads any mix of them by index. Slot 0 of every shelf is zero
and stays so: the identity. A slot is zeroed when it is freed; nobody ever sees a former tenant's weights. Factors are
brought into one order when they come in, so the forward knows a single formula. Knows tensors and slots; nothing of
names, leases or files.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from adakron.artefact import Adapter
from adakron.config import AdapterConfig, Head
from adakron.errors import BankFullError
from adakron.uploads import Uploads

FIRST_CAPACITY = 8

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True, slots=True)
class SiteShape:
    """Adapters of equal shape share a shelf. factor k, quotient q = r / k, layers below first_layer carry nothing."""

    factor: int
    quotient: int
    first_layer: int


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one kind and one padded width share a shelf."""

    kind: Head
    width: int


Shape = TypeVar("Shape", SiteShape, HeadShape)


class Shelf:
    """Tensors [S, ...], one slot for each adapter of one shape; S grows by doubling.

    Growing makes new tensors: whoever took `tensors` before reads on in the old ones, whose slots hold the same.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.tensors = {
            name: torch.zeros(1, *shape, dtype=dtype, device=device) for name, (shape, dtype) in layout.items()
        }
        self.slot_bytes = sum(tensor[0].nbytes for tensor in self.tensors.values())
        self.capacity = 1
        self.free: list[int] = []

    def grow(self, capacity: int) -> None:
        grown = {}
        for name, tensor in self.tensors.items():
            grown[name] = tensor.new_zeros(capacity, *tensor.shape[1:])
            grown[name][: self.capacity] = tensor
        self.free = list(range(capacity - 1, self.capacity - 1, -1)) + self.free
        self.tensors, self.capacity = grown, capacity

    def places(self, slot: int, values: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Where each value goes."""
        return [(self.tensors[name][slot], value) for name, value in values.items()]

    def release(self, slot: int) -> None:
        for tensor in self.tensors.values():
            tensor[slot].zero_()
        self.free.append(slot)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one adapter lies: its slot on a site shelf and its slot on a head shelf."""

    site: SiteShape
    site_slot: int
    head: HeadShape
    head_slot: int


class AdapterBank:
    """All resident adapters of one engine. Every method may be called from any thread.

    budget_bytes  upper bound for all tensors of the bank, or None

    One adapter takes (K + Q) (D + 1) + D (R + 1) numbers of `dtype` a layer, and its head L (D + 1) of float32 with
    L padded; the dense map of a RoBERTa-style head is in `dtype`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        budget_bytes: int | None = None,
    ) -> None:
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.dtype, self.device, self.budget_bytes = dtype, device, budget_bytes
        self.sites: dict[SiteShape, Shelf] = {}
        self.heads: dict[HeadShape, Shelf] = {}
        self._uploads = Uploads(device)
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all shelves, free slots counted."""
        shelves = [*self.sites.values(), *self.heads.values()]
        return sum(shelf.capacity * shelf.slot_bytes for shelf in shelves)

    def slot_bytes(self, placement: Placement) -> int:
        """Bytes that freeing this placement gives back to its shelves."""
        return self.sites[placement.site].slot_bytes + self.heads[placement.head].slot_bytes

    def add(self, adapter: Adapter) -> Placement:
        """Copy an adapter's tensors into free slots. Raises BankFullError; the bank is then as before."""
        config = adapter.config
        site = SiteShape(config.factor, config.adakron.quotient, config.first_layer)
        head = HeadShape(config.head, padded_width(config.num_labels))
        site_values, head_values = _site_values(adapter), _head_values(adapter, head.width)
        with self._lock:
            site_slot = self._take(self.sites, site, self._site_layout(site))
            try:
                head_slot = self._take(self.heads, head, self._head_layout(head))
            except BankFullError:
                self.sites[site].free.append(site_slot)
                raise
            places = self.sites[site].places(site_slot, site_values) + self.heads[head].places(head_slot, head_values)
            wait = self._uploads.start(places)
        wait()  # nobody can ask for slots that are not written yet; others may take theirs meanwhile
        return Placement(site, site_slot, head, head_slot)

    def remove(self, placement: Placement) -> int:
        """Zero and free the slots; the caller makes sure that no batch still reads them. Returns the bytes freed."""
        with self._lock:
            self.sites[placement.site].release(placement.site_slot)
            self.heads[placement.head].release(placement.head_slot)
            return self.slot_bytes(placement)

    def _take(self, shelves: dict[Shape, Shelf], shape: Shape, layout: Layout) -> int:
        shelf = shelves.get(shape)
        try:
            if shelf is None:
                shelf = shelves[shape] = Shelf(layout, self.device)
            if not shelf.free:
                self._uploads.join()
                shelf.grow(self._next_capacity(shelf))
        except torch.OutOfMemoryError as error:
            raise BankFullError(
                f"no memory left on {self.device} for another adapter", hint="remove adapters or use a larger device"
            ) from error
        return shelf.free.pop()

    def _next_capacity(self, shelf: Shelf) -> int:
        wanted = max(FIRST_CAPACITY, 2 * shelf.capacity)
        if self.budget_bytes is None:
            return wanted
        room = (self.budget_bytes - self.size_bytes) // shelf.slot_bytes
        if room < 1:
            raise BankFullError(
                f"the bank holds {self.size_bytes} of {self.budget_bytes} bytes; another slot takes {shelf.slot_bytes}",
                hint="remove adapters or raise the device budget",
            )
        return min(wanted, shelf.capacity + room)

    def _site_layout(self, shape: SiteShape) -> Layout:
        layers, width = self.num_layers - shape.first_layer, self.hidden_size
        rows, bottleneck = shape.factor + shape.quotient, shape.factor * shape.quotient
        return {
            "down": ((layers, rows, width), self.dtype),
            "down_bias": ((layers, rows), self.dtype),
            "up": ((layers, bottleneck, width), self.dtype),
            "up_bias": ((layers, width), self.dtype),
        }

    def _head_layout(self, shape: HeadShape) -> Layout:
        width = self.hidden_size
        layout = {
            "weight": ((shape.width, width), torch.float32),
            "bias": ((shape.width,), torch.float32),
        }
        if shape.kind == "roberta":
            layout |= {"dense": ((width, width), self.dtype), "dense_bias": ((width,), self.dtype)}
        return layout


class BankView:
    """The bank's tensors as they were when it was taken; slots that a batch holds do not change after that."""

    def __init__(self, bank: AdapterBank) -> None:
        self._sites = {shape: shelf.tensors for shape, shelf in list(bank.sites.items())}
        self._heads = {shape: shelf.tensors for shape, shelf in list(bank.heads.items())}

    @property
    def shapes(self) -> tuple[SiteShape, ...]:
        """Every shelf of adapters, oldest first."""
        return tuple(self._sites)

    def shelf(self, shape: SiteShape) -> dict[str, Tensor]:
        """All layers of a shelf, each tensor [S, layers, ...], the first layer being shape.first_layer."""
        return self._sites[shape]

    def site(self, shape: SiteShape, layer: int) -> dict[str, Tensor]:
        """One layer of a shelf, each tensor [S, ...]; layer >= shape.first_layer."""
        return {name: tensor[:, layer - shape.first_layer] for name, tensor in self._sites[shape].items()}

    def head(self, shape: HeadShape) -> dict[str, Tensor]:
        """weight [S, L, D], bias [S, L]; for "roberta" also dense [S, D, D], dense_bias [S, D]."""
        return self._heads[shape]


def padded_width(num_labels: int) -> int:
    """Label counts are padded to 2, 4, 8, 16, then to multiples of 16, so that few shelves serve every head."""
    return max(2, 1 << (num_labels - 1).bit_length()) if num_labels <= 16 else -(-num_labels // 16) * 16


def _site_values(adapter: Adapter) -> dict[str, Tensor]:
    """down [layers, K + Q, D]: the rows of A2, then those of A1; up [layers, R, D]: B transposed, for order a2_a1."""
    config, tensors = adapter.config, adapter.tensors
    layers = range(config.first_layer, config.num_hidden_layers)

    def stack(name: str) -> Tensor:
        return torch.stack([tensors[f"layers.{layer}.{name}"].float() for layer in layers])

    up = stack("up.weight")
    if config.order == "a1_a2":
        up = up.view(*up.shape[:-1], config.adakron.quotient, config.factor).mT.flatten(-2)
    return {
        "down": torch.cat([stack("a2.weight"), stack("a1.weight")], dim=1),
        "down_bias": torch.cat([stack("a2.bias"), stack("a1.bias")], dim=1),
        "up": up.mT,
        "up_bias": stack("up.bias"),
    }


def _head_values(adapter: Adapter, width: int) -> dict[str, Tensor]:
    """weight [width, D], bias [width], rows beyond the labels zero; dense [D, D] of a RoBERTa-style head."""
    config: AdapterConfig = adapter.config
    projection = "head" if config.head == "linear" else "head.out_proj"
    missing = width - config.num_labels
    values = {
        "weight": torch.nn.functional.pad(adapter.tensors[f"{projection}.weight"].float(), (0, 0, 0, missing)),
        "bias": torch.nn.functional.pad(adapter.tensors[f"{projection}.bias"].float(), (0, missing)),
    }
    if config.head == "roberta":
        values |= {"dense": adapter.tensors["head.dense.weight"], "dense_bias": adapter.tensors["head.dense.bias"]}
    return values
