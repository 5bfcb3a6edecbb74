import sys

import pytest
import torch

from loadtests.engine_machine import available_bytes, describe, torch_threads, working_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")
def test_what_a_run_needs_at_its_peak_counts_and_what_it_leaves_alone_does_not() -> None:
    kept = torch.ones(30_000_000)
    needed = working_bytes(lambda: torch.ones(10_000_000).sum(), CPU)
    assert needed is not None
    assert 38_000_000 < needed < 80_000_000
    assert kept.nbytes > needed


def test_available_memory_is_known_here() -> None:
    found = available_bytes(CPU)
    assert found is None or found > 10_000_000


def test_the_machine_is_described() -> None:
    facts = describe(CPU)
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"]


def test_the_number_of_threads_is_restored_after_a_failure() -> None:
    before, inside = torch.get_num_threads(), 0

    def fail() -> None:
        nonlocal inside
        with torch_threads(before + 1):
            inside = torch.get_num_threads()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert (inside, torch.get_num_threads()) == (before + 1, before)


@pytest.mark.gpu
def test_a_run_on_a_gpu_counts_what_it_allocates() -> None:
    device = torch.device("cuda")
    assert working_bytes(lambda: torch.ones(1_000_000, device=device).sum(), device) >= 4_000_000  # type: ignore[operator]
