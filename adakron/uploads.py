"""Weights on their way to the device, beside the batches that run there.

On CUDA they travel from pinned memory on a stream of their own, so that no batch waits for them; on a CPU they are
copied at once. Knows tensors; nothing of slots or adapters.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Uploads:
    """All uploads to one device, one after another. Not for several threads at once, but for what `start` returns."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types

    def start(self, copies: Iterable[tuple[Tensor, Tensor]]) -> Callable[[], None]:
        """Write values from the host into places on the device, in the places' dtype: (place, value), same shapes.

        It happens after everything that was launched before: whoever still reads a place's former values reads on.
        Returns a function that waits until it has happened; only then may others learn of the places.
        """
        if self._stream is None:
            for place, value in copies:
                place.copy_(value)
            return lambda: None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for place, value in copies:
                place.copy_(value.to(place.dtype).contiguous().pin_memory(), non_blocking=True)
        written = self._stream.record_event()

        def wait() -> None:
            written.synchronize()

        return wait

    def join(self) -> None:
        """What is launched from now on happens after the uploads that were started before."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
