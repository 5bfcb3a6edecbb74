"""One thread of a process that computes on several processors, while all others compute alone.

OpenMP keeps a team for every thread that ever computed on several, for as long as that thread lives. Where all teams
together have more threads than there are processors, they no longer wait awake for the next piece of work but go to
sleep, and a batch of one row is a hundred short pieces: it then takes nearly twice as long. Knows torch's threads, and
nothing else.
"""

import threading

import torch


class ComputeThread:
    """Made before anything is computed: `take` by the thread that is to compute, then `settle` by another.

    threads  of torch, the taking thread's own included
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._taken = threading.Event()
        _set(1)

    def take(self) -> None:
        """Let the calling thread compute on all of the threads."""
        _set(self._threads)
        self._taken.set()

    def settle(self) -> None:
        """Wait until they are taken; threads that are born after this compute alone."""
        self._taken.wait()
        _set(1)


def _set(threads: int) -> None:
    """For the calling thread, and for those that never computed: they begin with what was set last."""
    torch.set_num_threads(threads)
    torch.get_num_threads()  # only from its first question on does a thread keep its own number
