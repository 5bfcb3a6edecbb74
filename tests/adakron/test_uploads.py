import pytest
import torch

from adakron.bank import AdapterBank, BankView
from adakron.uploads import Uploads
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone

CPU = torch.device("cpu")


def test_values_arrive_in_their_places_in_the_places_dtype():
    shelf = torch.zeros(3, 4, 5, dtype=torch.bfloat16)
    value = torch.randn(5, 4).T
    Uploads(CPU).start([(shelf[1], value)])()
    assert torch.equal(shelf[1], value.bfloat16())
    assert not shelf[[0, 2]].any()


@pytest.fixture
def steps(monkeypatch):
    """A bank, and what happens in it: uploads, waits with the state of the bank's lock, and shelves that grow."""
    bank, steps = AdapterBank(HIDDEN, LAYERS, torch.float32, CPU), []
    from adakron.bank import Shelf

    def start(copies):
        steps.append("start")
        return lambda: steps.append("wait locked" if bank._lock.locked() else "wait")

    monkeypatch.setattr(bank._uploads, "start", start)
    monkeypatch.setattr(bank._uploads, "join", lambda: steps.append("join"))
    grow = Shelf.grow
    monkeypatch.setattr(Shelf, "grow", lambda shelf, n: steps.append("grow") or grow(shelf, n))
    return bank, steps


def test_a_shelf_grows_after_the_uploads_into_it_and_add_returns_after_its_own(steps):
    bank, steps = steps
    adapter = tiny_adapter(tiny_backbone())
    bank.add(adapter)
    assert steps == ["join", "grow"] * 2 + ["start", "wait"]
    del steps[:]
    bank.add(adapter)
    assert steps == ["start", "wait"]


@pytest.fixture
def card_bank():
    """A bank on the card, and adapters of 7 MB each."""
    backbone = tiny_backbone(hidden=1024, layers=6)
    from adakron import AdaKronConfig

    adapters = [tiny_adapter(backbone, seed=n, adakron=AdaKronConfig(96, 4)) for n in range(4)]
    return AdapterBank(1024, 6, torch.float32, torch.device("cuda")), adapters


def slot_of(bank, placement):
    """A copy of one adapter's up-projection, queued on the stream of the batches."""
    return BankView(bank).site(placement.site, 2)["up"][placement.site_slot].clone()


@pytest.mark.gpu
def test_a_slot_is_whole_when_its_adapter_is_added(card_bank):
    bank, adapters = card_bank
    for n in range(40):
        adapter = adapters[n % len(adapters)]
        assert torch.equal(slot_of(bank, bank.add(adapter)).cpu(), adapter.tensors["layers.2.up.weight"].T)


@pytest.mark.gpu
def test_a_batch_under_way_reads_the_former_tenant_to_its_end(card_bank):
    bank, adapters = card_bank
    tenant, big = bank.place(bank.pack(adapters[0])), torch.ones(1 << 14, 1 << 14, device="cuda")
    for _ in range(10):
        big @ big  # the copy below waits behind these
    former = tenant.placement
    read = slot_of(bank, former)
    bank.remove(tenant)
    assert bank.add(adapters[1]) == former
    assert torch.equal(read.cpu(), adapters[0].tensors["layers.2.up.weight"].T)
    assert torch.equal(slot_of(bank, former).cpu(), adapters[1].tensors["layers.2.up.weight"].T)


@pytest.mark.gpu
def test_a_batch_does_not_wait_for_an_upload_that_waits_for_it(card_bank):
    """Uploads follow what was queued before them; what is queued after them waits for neither."""
    bank, adapters = card_bank
    bank.add(adapters[0])
    wait = bank._uploads.start([(torch.empty(1 << 28, device="cuda"), torch.zeros(1 << 28))])
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.zeros(1, device="cuda").add_(1)
    end.record()
    end.synchronize()
    wait()
    assert begin.elapsed_time(end) < 10, "a gigabyte takes 20 ms and more"
