"""Resident adapters: stacked tensors, one slot an adapter.

A shelf holds all adapters of one shape, so that a batch reads any mix of them by index. Slot 0 of every shelf is zero
and stays so: the identity. A slot is zeroed when it is freed, or written over whole; nobody ever sees a former
tenant's weights. Factors are
brought into one order when they come in, so the forward knows a single formula. Knows tensors and slots; nothing of
names, leases or files.

    Adapter --pack--> PackedAdapter, in host memory --place--> Tenant, in its slots --remove--> zeros
                                                                       --exchange--> another adapter of its shapes

Slots never move while a shelf grows; `compact` moves them, to give back the room of freed ones to shelves of other
shapes. Where a tenant lies is therefore asked together with the tensors it lies in: `view`.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adakron.artefact import Adapter
from adakron.config import AdapterConfig, Head
from adakron.errors import BankFullError
from adakron.uploads import Uploads

FIRST_CAPACITY = 8

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class SiteShape(NamedTuple):
    """Adapters of equal shape share a shelf. factor k, quotient q = r / k, layers below first_layer carry nothing.

    A tuple, as every batch looks it up once a row and more.
    """

    factor: int
    quotient: int
    first_layer: int


class HeadShape(NamedTuple):
    """Heads of one kind and one padded width share a shelf."""

    kind: Head
    width: int


Shape = TypeVar("Shape", SiteShape, HeadShape)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory as the bank wants it: stacked, in the bank's dtype; pinned where a GPU reads it.

    site_values, head_values   what `_site_values` and `_head_values` give, each in the dtype of its place
    """

    config: AdapterConfig
    site: SiteShape
    head: HeadShape
    site_values: Mapping[str, Tensor]
    head_values: Mapping[str, Tensor]

    @property
    def shapes(self) -> tuple[SiteShape, HeadShape]:
        """What its slots must be like: only adapters with the same shapes can take each other's."""
        return self.site, self.head

    @property
    def size_bytes(self) -> int:
        """Of all tensors; the same number on the device."""
        return sum(value.nbytes for values in (self.site_values, self.head_values) for value in values.values())


class Shelf:
    """Tensors [S, ...], one slot for each adapter of one shape; S grows by doubling.

    Growing and compacting make new tensors: whoever took `tensors` before reads on in the old ones, whose slots hold
    the same.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.tensors = {
            name: torch.zeros(1, *shape, dtype=dtype, device=device) for name, (shape, dtype) in layout.items()
        }
        self.slot_bytes = _slot_bytes(layout)
        self.capacity = 1
        self.free: list[int] = []

    def grow(self, capacity: int) -> None:
        grown = {}
        for name, tensor in self.tensors.items():
            grown[name] = tensor.new_zeros(capacity, *tensor.shape[1:])
            grown[name][: self.capacity] = tensor
        self.free = list(range(capacity - 1, self.capacity - 1, -1)) + self.free
        self.tensors, self.capacity = grown, capacity

    def compacted(self) -> tuple[dict[str, Tensor], list[int]]:
        """Tensors without the free slots, and the former slot of each slot in them; the shelf stays as it is."""
        free = set(self.free)
        kept = [slot for slot in range(self.capacity) if slot not in free]
        index = torch.tensor(kept)
        return {name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()}, kept

    def replace(self, tensors: dict[str, Tensor]) -> None:
        """Be these tensors from now on, none of whose slots is free."""
        self.tensors, self.capacity, self.free = tensors, next(iter(tensors.values())).shape[0], []

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


class Tenant:
    """One adapter in its slots, until it is removed; `placement` is only good together with a view, see `view`."""

    __slots__ = ("placement",)

    def __init__(self, placement: Placement) -> None:
        self.placement = placement


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
        self._tenants: set[Tenant] = set()
        self._lock = threading.Lock()  # of everything that changes a slot or a shelf; may be held for long
        self._layout = threading.Lock()  # of where tenants lie and in which tensors; held for a moment, by batches too

    @property
    def size_bytes(self) -> int:
        """Bytes of all shelves, free slots counted."""
        shelves = [*self.sites.values(), *self.heads.values()]
        return sum(shelf.capacity * shelf.slot_bytes for shelf in shelves)

    @property
    def free_bytes(self) -> int:
        """Bytes of the free slots alone, whatever their shape: what `compact` would give back."""
        shelves = [*self.sites.values(), *self.heads.values()]
        return sum(len(shelf.free) * shelf.slot_bytes for shelf in shelves)

    def slot_bytes(self, tenant: Tenant) -> int:
        """Bytes that freeing this tenant's slots gives back to their shelves."""
        placement = tenant.placement
        return self.sites[placement.site].slot_bytes + self.heads[placement.head].slot_bytes

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """Bring an adapter's tensors into the form that `place` copies."""
        config = adapter.config
        site = SiteShape(config.factor, config.adakron.quotient, config.first_layer)
        head = HeadShape(config.head, padded_width(config.num_labels))
        return PackedAdapter(
            config,
            site,
            head,
            self._packed(_site_values(adapter), self._site_layout(site)),
            self._packed(_head_values(adapter, head.width), self._head_layout(head)),
        )

    def add(self, adapter: Adapter) -> Placement:
        """Pack and place an adapter that stays for good. Raises BankFullError."""
        return self.place(self.pack(adapter)).placement

    def place(self, packed: PackedAdapter) -> Tenant:
        """Copy a packed adapter into free slots. Raises BankFullError; the bank is then as before."""
        with self._lock:
            head_layout = self._head_layout(packed.head)
            shelf = self.heads.get(packed.head)
            # Near the bound the site shelf must not grow into the room that the head's slot needs.
            reserved_bytes = 2 * _slot_bytes(head_layout) if shelf is None else 0 if shelf.free else shelf.slot_bytes
            site_slot = self._take(self.sites, packed.site, self._site_layout(packed.site), reserved_bytes)
            try:
                head_slot = self._take(self.heads, packed.head, head_layout)
            except BankFullError:
                self.sites[packed.site].free.append(site_slot)
                raise
            sites, heads = self.sites[packed.site], self.heads[packed.head]
            places = sites.places(site_slot, packed.site_values) + heads.places(head_slot, packed.head_values)
            wait = self._uploads.start(places)
            tenant = Tenant(Placement(packed.site, site_slot, packed.head, head_slot))
            self._tenants.add(tenant)
        wait()  # nobody can ask for slots that are not written yet; others may take theirs meanwhile
        return tenant

    def exchange(self, tenant: Tenant, packed: PackedAdapter) -> Tenant:
        """Put an adapter of the same shapes into a tenant's slots: every number of them is written over.

        The caller makes sure that no batch still reads them. The former tenant is gone.
        """
        with self._lock:
            self._tenants.remove(tenant)
            placement = tenant.placement
            sites, heads = self.sites[placement.site], self.heads[placement.head]
            places = sites.places(placement.site_slot, packed.site_values)
            wait = self._uploads.start(places + heads.places(placement.head_slot, packed.head_values))
            newcomer = Tenant(placement)
            self._tenants.add(newcomer)
        wait()
        return newcomer

    def remove(self, tenant: Tenant) -> int:
        """Zero and free the slots; the caller makes sure that no batch still reads them. Returns the bytes freed."""
        with self._lock:
            self._tenants.remove(tenant)
            placement = tenant.placement
            self.sites[placement.site].release(placement.site_slot)
            self.heads[placement.head].release(placement.head_slot)
            return self.slot_bytes(tenant)

    def unpack(self, tenant: Tenant, config: AdapterConfig) -> PackedAdapter:
        """A copy of what `place` put into the tenant's slots, back in host memory."""
        view, [placement] = self.view([tenant])
        assert placement is not None
        site, head = view.shelf(placement.site), view.head(placement.head)
        return PackedAdapter(
            config,
            placement.site,
            placement.head,
            {name: self._on_host(tensor[placement.site_slot]) for name, tensor in site.items()},
            {name: self._on_host(tensor[placement.head_slot]) for name, tensor in head.items()},
        )

    def compact(self) -> int:
        """Give back the room of all free slots, whatever their shape; costs a copy of each shelf that has some.

        Batches under way read on in the former tensors. Returns the bytes given back.
        """
        with self._lock:
            before = self.size_bytes
            self._uploads.join()
            sites = _compact(self.sites)
            heads = _compact(self.heads)
            with self._layout:
                for shelf, tensors, _ in [*sites.values(), *heads.values()]:
                    shelf.replace(tensors)
                for tenant in self._tenants:
                    former = tenant.placement
                    tenant.placement = Placement(
                        former.site,
                        sites[former.site][2][former.site_slot] if former.site in sites else former.site_slot,
                        former.head,
                        heads[former.head][2][former.head_slot] if former.head in heads else former.head_slot,
                    )
            return before - self.size_bytes

    def view(self, tenants: Sequence[Tenant | None]) -> tuple["BankView", list[Placement | None]]:
        """The bank's tensors, and where in them each tenant lies; None stays None."""
        with self._layout:
            return BankView(self), [None if tenant is None else tenant.placement for tenant in tenants]

    def _packed(self, values: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
        packed = {name: value.to(layout[name][1]).contiguous() for name, value in values.items()}
        return {name: value.pin_memory() for name, value in packed.items()} if self.device.type == "cuda" else packed

    def _on_host(self, slot: Tensor) -> Tensor:
        return slot.cpu().pin_memory() if self.device.type == "cuda" else slot.clone()

    def _take(self, shelves: dict[Shape, Shelf], shape: Shape, layout: Layout, reserved_bytes: int = 0) -> int:
        """A free slot of the shelf for `shape`; `reserved_bytes` of the budget are left alone if it has to grow."""
        shelf = shelves.get(shape)
        try:
            if shelf is None:
                self._room(2 * _slot_bytes(layout), reserved_bytes)  # for slot 0 and one more
                shelf = shelves[shape] = Shelf(layout, self.device)
            if not shelf.free:
                capacity = self._next_capacity(shelf, reserved_bytes)
                self._uploads.join()
                shelf.grow(capacity)
        except torch.OutOfMemoryError as error:
            raise BankFullError(
                f"no memory left on {self.device} for another adapter", hint="remove adapters or use a larger device"
            ) from error
        return shelf.free.pop()

    def _next_capacity(self, shelf: Shelf, reserved_bytes: int) -> int:
        wanted = max(FIRST_CAPACITY, 2 * shelf.capacity)
        if self.budget_bytes is None:
            return wanted
        room = self._room(shelf.slot_bytes, reserved_bytes) // shelf.slot_bytes
        if self.size_bytes + wanted * shelf.slot_bytes > self.budget_bytes // 2:
            # Near the bound free slots are taken from other shapes: fewer of them, at the price of more copies.
            wanted = shelf.capacity + max(1, shelf.capacity // 8)
        return min(wanted, shelf.capacity + room)

    def _room(self, wanted_bytes: int, reserved_bytes: int) -> int:
        """Bytes left of the budget, at least those wanted. Raises BankFullError."""
        if self.budget_bytes is None:
            return wanted_bytes
        room = self.budget_bytes - self.size_bytes - reserved_bytes
        if room < wanted_bytes:
            raise BankFullError(
                f"the bank holds {self.size_bytes} of {self.budget_bytes} bytes; another slot takes {wanted_bytes}",
                hint="remove adapters or raise the device budget",
            )
        return room

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


def _slot_bytes(layout: Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _compact(shelves: Mapping[Shape, Shelf]) -> dict[Shape, tuple[Shelf, dict[str, Tensor], dict[int, int]]]:
    """Of each shelf with free slots: itself, its tensors without them, and former slot -> slot."""
    compacted = {}
    for shape, shelf in shelves.items():
        if shelf.free:
            tensors, kept = shelf.compacted()
            compacted[shape] = (shelf, tensors, {former: slot for slot, former in enumerate(kept)})
    return compacted


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
