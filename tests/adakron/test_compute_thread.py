import threading

import torch

from adakron.compute_thread import ComputeThread


def in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_computes_on_all_and_every_other_alone():
    before = torch.get_num_threads()
    release, taken = threading.Event(), threading.Event()
    counts = []
    try:
        compute = ComputeThread(3)
        assert torch.get_num_threads() == 1

        def worker():
            compute.take()
            taken.set()
            release.wait()
            counts.append(torch.get_num_threads())

        thread = threading.Thread(target=worker)
        thread.start()
        taken.wait()
        compute.settle()
        assert torch.get_num_threads() == 1
        assert in_a_thread(torch.get_num_threads) == 1
        release.set()
        thread.join()
        assert counts == [3]
    finally:
        torch.set_num_threads(before)


def test_settling_waits_until_the_threads_are_taken():
    before = torch.get_num_threads()
    try:
        compute = ComputeThread(2)
        settling = threading.Thread(target=compute.settle)
        settling.start()
        settling.join(0.05)
        assert settling.is_alive()
        in_a_thread(compute.take)
        settling.join(5)
        assert not settling.is_alive()
        assert in_a_thread(torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)
