import threading

import pytest
import torch

from adakron import AdaKronConfig
from adakron.bank import FIRST_CAPACITY, AdapterBank, BankView, padded_width
from adakron.errors import BankFullError
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def make_bank(budget_bytes: int | None = None) -> AdapterBank:
    return AdapterBank(HIDDEN, LAYERS, torch.float32, torch.device("cpu"), budget_bytes)


def test_each_adapter_gets_a_slot_of_its_own_and_never_slot_zero(backbone):
    bank = make_bank()
    placements = [bank.add(tiny_adapter(backbone, seed=n)) for n in range(2 * FIRST_CAPACITY + 3)]
    slots = [placement.site_slot for placement in placements]
    assert len(set(slots)) == len(slots)
    assert 0 not in slots
    assert 0 not in [placement.head_slot for placement in placements]


def test_growing_keeps_what_is_there_and_what_others_hold(backbone):
    bank = make_bank()
    first = bank.add(tiny_adapter(backbone, seed=1))
    held = BankView(bank)
    before = held.site(first.site, 0)["down"][first.site_slot].clone()
    for n in range(3 * FIRST_CAPACITY):
        bank.add(tiny_adapter(backbone, seed=n))
    assert torch.equal(held.site(first.site, 0)["down"][first.site_slot], before)
    assert torch.equal(BankView(bank).site(first.site, 0)["down"][first.site_slot], before)


def test_removed_slots_are_zero_and_used_again(backbone):
    bank = make_bank()
    placement = bank.add(tiny_adapter(backbone))
    freed = bank.remove(placement)
    assert freed == bank.slot_bytes(placement)
    for shelf, slot in (
        (bank.sites[placement.site], placement.site_slot),
        (bank.heads[placement.head], placement.head_slot),
    ):
        assert all(not tensor[slot].any() for tensor in shelf.tensors.values())
    assert bank.add(tiny_adapter(backbone, seed=2)) == placement


def test_a_narrower_head_leaves_nothing_of_a_wider_former_tenant(backbone):
    bank = make_bank()
    wide = bank.add(tiny_adapter(backbone, ["a", "b", "c", "d"]))
    bank.remove(wide)
    narrow = bank.add(tiny_adapter(backbone, ["a", "b", "c"]))
    assert narrow.head_slot == wide.head_slot
    head = BankView(bank).head(narrow.head)
    assert not head["weight"][narrow.head_slot, 3].any()
    assert not head["bias"][narrow.head_slot, 3].any()


def test_adapters_of_different_shapes_lie_on_different_shelves(backbone):
    bank = make_bank()
    shapes = [AdaKronConfig(12, 4), AdaKronConfig(20, 4), AdaKronConfig(12, 2), AdaKronConfig(12, 4, first_layer=1)]
    assert len({bank.add(tiny_adapter(backbone, adakron=shape)).site for shape in shapes}) == 4


def test_a_full_bank_refuses_and_stays_usable(backbone):
    one = make_bank()
    placement = one.add(tiny_adapter(backbone))
    budget = 4 * one.slot_bytes(placement)
    bank = make_bank(budget)
    placements = []
    while bank.size_bytes + one.slot_bytes(placement) <= budget:
        placements.append(bank.add(tiny_adapter(backbone)))
    with pytest.raises(BankFullError, match="another slot takes"):
        [bank.add(tiny_adapter(backbone)) for _ in range(4)]
    assert placements
    assert bank.size_bytes <= budget
    bank.remove(placements[0])
    assert bank.add(tiny_adapter(backbone, seed=99)) == placements[0]


def test_a_head_that_finds_no_room_gives_its_site_slot_back(backbone):
    one = make_bank()
    narrow = one.add(tiny_adapter(backbone))
    site, head = one.sites[narrow.site].slot_bytes, one.heads[narrow.head].slot_bytes
    bank = make_bank(4 * site + 4 * head)
    bank.add(tiny_adapter(backbone))
    free = len(bank.sites[narrow.site].free)
    with pytest.raises(BankFullError):
        bank.add(tiny_adapter(backbone, [f"l{n}" for n in range(200)]))
    assert len(bank.sites[narrow.site].free) == free


def test_many_threads_never_share_a_slot(backbone):
    bank = make_bank()
    adapter = tiny_adapter(backbone)
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(bank.add(adapter).site_slot for _ in range(20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 160


@pytest.mark.parametrize(
    ("labels", "width"), [(1, 2), (2, 2), (3, 4), (9, 16), (16, 16), (17, 32), (77, 80), (151, 160)]
)
def test_label_counts_are_padded_to_few_widths(labels, width):
    assert padded_width(labels) == width
