"""Tell the C library to keep the memory it is given back: the next batch needs it again.

By default glibc returns every large buffer to the kernel, and the page faults of getting it again take up to a third
of a batch's time on a CPU. Knows nothing of what the memory is for.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """For this process and from now on. Returns whether the C library is one that can (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
