"""A program of its own: reads one checkpoint with `torch.load(weights_only=True)`, writes its tensors as safetensors.

    python unpickle.py CHECKPOINT OUT MEMORY_BYTES CPU_SECONDS OUT_BYTES

`adakron.importing.checkpoint` runs it as a child. It limits itself before the first byte is read: to so much memory
beyond what torch has already, so much processor time, no file larger than OUT_BYTES. Exit code 0, or 3 with what is
wrong as one line on stdout. Knows files and tensors; nothing of adapters.
"""

import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

REFUSED = 3
MAX_TENSORS = 20_000


class RefusedError(Exception):
    """What is wrong with the checkpoint."""


def main(arguments: list[str]) -> int:
    """Read, write, and return the exit code."""
    source, target = arguments[:2]
    memory_bytes, cpu_seconds, out_bytes = (int(text) for text in arguments[2:])
    _limit(memory_bytes, cpu_seconds, out_bytes)
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
        save_file(copies(content, out_bytes), target)
    except Exception as error:  # the libraries raise whatever they like for a broken file
        sys.stdout.write(f"{_reason(error)}\n")
        return REFUSED
    return 0


def _limit(memory_bytes: int, cpu_seconds: int, out_bytes: int) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; elsewhere the kernel does not keep this limit
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (out_bytes, out_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def copies(content: Any, most_bytes: int) -> dict[str, Tensor]:
    """A state dict with memory of its own for each tensor. A view may claim more than its file has: counted first.

    Raises RefusedError for anything else, and for more than most_bytes.
    """
    if not isinstance(content, dict) or not content:
        raise RefusedError("expected a state dict: names and tensors")
    if len(content) > MAX_TENSORS:
        raise RefusedError(f"expected at most {MAX_TENSORS} tensors; found {len(content)}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RefusedError(f"{str(name)[:80]}: expected a tensor; found {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise RefusedError(f"{name[:80]}: expected a plain tensor of real numbers")
    total = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if total > most_bytes:
        raise RefusedError(f"its tensors claim {total} bytes, more than the file can hold")
    return {name: tensor.detach().contiguous().clone() for name, tensor in content.items()}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, RefusedError):
        return text
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "reading it takes more memory than its size explains"
    if named := re.search(r"(?:GLOBAL|global:?) [`']?([\w.]+)", text):
        return f"it holds more than tensors: {named.group(1)[:80]}"
    return f"it is damaged, cut short or no checkpoint ({type(error).__name__})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
