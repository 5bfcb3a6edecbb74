"""Small arrays that a batch needs on the device, brought there by one copy.

Knows bytes; nothing of what the arrays mean.
"""

from collections.abc import Sequence

import numpy as np
import torch

ALIGNMENT = 16  # of every array, so that no kernel is compiled again for one that lies askew


class Tables:
    """Tensors on the device for arrays of at most these lengths; `fill` may be called for one batch after another.

    like     arrays whose shapes and dtypes are those of the tensors; their values do not matter
    tensors  as many, in the same order; where they lie does not change

    On CUDA the copy waits for nothing and nobody waits for it but the stream at hand.
    """

    def __init__(self, like: Sequence[np.ndarray], device: torch.device) -> None:
        begins, size = [], 0
        for array in like:
            begins.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        on_card = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=on_card)
        self._device = self._host.to(device) if on_card else torch.empty_like(self._host)
        self._copied = torch.cuda.Event() if on_card else None  # type: ignore[no-untyped-call]  # torch gives it no types
        parts = [(begin, begin + array.nbytes) for begin, array in zip(begins, like, strict=True)]
        whole = self._host.numpy()
        self._arrays = [whole[slice(*p)].view(a.dtype).reshape(a.shape) for p, a in zip(parts, like, strict=True)]
        self.tensors = [
            self._device[slice(*part)].view(torch.from_numpy(empty).dtype).view(array.shape)
            for part, array, empty in zip(parts, like, (np.empty(0, array.dtype) for array in like), strict=True)
        ]

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], device: torch.device) -> "Tables":
        """Tables of exactly these arrays."""
        tables = cls(arrays, device)
        tables.fill(arrays)
        return tables

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Write other arrays, in the same order; one that is shorter along its first axis is filled up with zeros.

        Raises ValueError for one that is longer, or wrong in another axis.
        """
        if self._copied is not None:
            self._copied.synchronize()  # the former copy may still be on its way out of the same memory
        for place, array in zip(self._arrays, arrays, strict=True):
            place[: len(array)] = array
            place[len(array) :] = 0
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
