import threading

import pytest
import torch

from adakron import AdaKronConfig, Adapter
from adakron.bank import FIRST_CAPACITY, AdapterBank, BankView, Tenant, padded_width
from adakron.errors import BankFullError
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def make_bank(budget_bytes: int | None = None) -> AdapterBank:
    return AdapterBank(HIDDEN, LAYERS, torch.float32, torch.device("cpu"), budget_bytes)


def place(bank: AdapterBank, adapter: Adapter) -> Tenant:
    return bank.place(bank.pack(adapter))


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
    tenant = place(bank, tiny_adapter(backbone))
    placement = tenant.placement
    freed = bank.remove(tenant)
    assert freed == bank.slot_bytes(tenant)
    for shelf, slot in (
        (bank.sites[placement.site], placement.site_slot),
        (bank.heads[placement.head], placement.head_slot),
    ):
        assert all(not tensor[slot].any() for tensor in shelf.tensors.values())
    assert bank.add(tiny_adapter(backbone, seed=2)) == placement


def test_a_narrower_head_leaves_nothing_of_a_wider_former_tenant(backbone):
    bank = make_bank()
    wide = place(bank, tiny_adapter(backbone, ["a", "b", "c", "d"]))
    bank.remove(wide)
    narrow = bank.add(tiny_adapter(backbone, ["a", "b", "c"]))
    assert narrow.head_slot == wide.placement.head_slot
    head = BankView(bank).head(narrow.head)
    assert not head["weight"][narrow.head_slot, 3].any()
    assert not head["bias"][narrow.head_slot, 3].any()


def test_adapters_of_different_shapes_lie_on_different_shelves(backbone):
    bank = make_bank()
    shapes = [AdaKronConfig(12, 4), AdaKronConfig(20, 4), AdaKronConfig(12, 2), AdaKronConfig(12, 4, first_layer=1)]
    assert len({bank.add(tiny_adapter(backbone, adakron=shape)).site for shape in shapes}) == 4


def test_a_full_bank_refuses_and_stays_usable(backbone):
    one = make_bank()
    slot_bytes = one.slot_bytes(place(one, tiny_adapter(backbone)))
    budget = 4 * slot_bytes
    bank = make_bank(budget)
    tenants = []
    while bank.size_bytes + slot_bytes <= budget:
        tenants.append(place(bank, tiny_adapter(backbone)))
    with pytest.raises(BankFullError, match="another slot takes"):
        [bank.add(tiny_adapter(backbone)) for _ in range(4)]
    assert tenants
    assert bank.size_bytes <= budget
    bank.remove(tenants[0])
    assert bank.add(tiny_adapter(backbone, seed=99)) == tenants[0].placement


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


def test_an_exchange_leaves_nothing_of_the_former_tenant(backbone):
    bank = make_bank()
    former = place(bank, tiny_adapter(backbone, ["a", "b", "c", "d"], seed=1))
    newcomer = tiny_adapter(backbone, ["a", "b", "c"], seed=2)
    tenant = bank.exchange(former, bank.pack(newcomer))
    assert tenant.placement == former.placement
    other = make_bank()
    expected = values_of(other, place(other, newcomer))
    assert all(torch.equal(value, expected[name]) for name, value in values_of(bank, tenant).items())
    with pytest.raises(KeyError):
        bank.remove(former)
    bank.remove(tenant)


def values_of(bank: AdapterBank, tenant: Tenant) -> dict[str, torch.Tensor]:
    view, [placement] = bank.view([tenant])
    assert placement is not None
    site = {name: tensor[placement.site_slot].clone() for name, tensor in view.shelf(placement.site).items()}
    return site | {f"head {n}": t[placement.head_slot].clone() for n, t in view.head(placement.head).items()}


def test_compacting_gives_back_free_slots_and_moves_the_others_whole(backbone):
    bank = make_bank()
    labels = [["a", "b"], ["a", "b", "c"], [f"l{n}" for n in range(20)]]
    tenants = [place(bank, tiny_adapter(backbone, labels[n % 3], seed=n)) for n in range(2 * FIRST_CAPACITY + 3)]
    before = {tenant: values_of(bank, tenant) for tenant in tenants}
    held, held_placements = bank.view(tenants)
    for tenant in tenants[::2]:
        bank.remove(tenant)
    free = bank.free_bytes
    assert free > 0
    size = bank.size_bytes
    assert bank.compact() == free
    assert (bank.size_bytes, bank.free_bytes) == (size - free, 0)
    for number, tenant in enumerate(tenants):
        if number % 2:
            assert all(torch.equal(value, before[tenant][name]) for name, value in values_of(bank, tenant).items())
            # A batch that took its view before reads on where the tenants were.
            old = held_placements[number]
            assert old is not None
            assert torch.equal(held.shelf(old.site)["up"][old.site_slot], before[tenant]["up"])
    assert len({tenant.placement.site_slot for tenant in tenants[1::2]}) == len(tenants[1::2])
    assert bank.compact() == 0


def test_what_is_compacted_grows_again(backbone):
    bank = make_bank()
    first = place(bank, tiny_adapter(backbone, seed=1))
    before = values_of(bank, first)
    bank.compact()
    for n in range(FIRST_CAPACITY + 1):
        bank.add(tiny_adapter(backbone, seed=2 + n))
    assert all(torch.equal(value, before[name]) for name, value in values_of(bank, first).items())
