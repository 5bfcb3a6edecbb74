"""Which dtype the encoder runs in."""

import time
from typing import Literal

import torch
from torch.nn import functional as F

Dtype = Literal["auto", "float32", "bfloat16"]


def choose_dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    """The dtype asked for; for "auto" bfloat16 on CUDA, and on a CPU where it beats float32 here and now."""
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if _seconds(torch.bfloat16) < 0.7 * _seconds(torch.float32) else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Median seconds of one product of an encoder's size, [512, 384] x [384, 1536]."""
    x, weight = torch.ones(512, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    timings = []
    for _ in range(5):
        start = time.perf_counter()
        F.linear(x, weight)
        timings.append(time.perf_counter() - start)
    return sorted(timings)[2]
