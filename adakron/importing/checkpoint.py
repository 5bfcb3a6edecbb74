"""A checkpoint that torch.save wrote, read by a child process with limits, so that nothing in it can touch this one.

Knows files and processes; nothing of adapters. What the child does is in `unpickle.py`; its tensors come back as
safetensors.
"""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from adakron.errors import FormatError

PROGRAM = Path(__file__).with_name("unpickle.py")
MAX_CHECKPOINT_BYTES = 4 << 30
TIME_LIMIT_S = 300
MEMORY_BYTES = 512 << 20  # beside three times the file: as read, as copied, as written
OUT_BYTES = 1 << 20  # beside the file: names and headers

# What Python and torch need to start; keys of other services are none of it.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")


def read_checkpoint(
    path: str | Path, *, max_bytes: int = MAX_CHECKPOINT_BYTES, time_limit_s: float = TIME_LIMIT_S
) -> dict[str, Tensor]:
    """The tensors of a state dict by name, on the CPU.

    Raises FormatError: no regular file, too large, damaged, anything in it but tensors, or limits passed.
    """
    place = Path(path).absolute()
    size = _size(place)
    if size > max_bytes:
        raise FormatError(f"{place.name}: expected at most {max_bytes} bytes; found {size}")
    with tempfile.TemporaryDirectory(prefix="adakron-import-") as folder:
        out = Path(folder) / "tensors.safetensors"
        limits = (3 * size + MEMORY_BYTES, max(1, round(time_limit_s)), size + OUT_BYTES)
        try:
            child = subprocess.run(
                [sys.executable, "-P", str(PROGRAM), str(place), str(out), *(str(limit) for limit in limits)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=folder,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"},
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FormatError(f"{place.name}: not read within {time_limit_s} s") from error
        if child.returncode:
            said = child.stdout.strip().splitlines()
            reason = said[-1] if said else f"its reader ended with code {child.returncode}"
            raise FormatError(f"{place.name}: {reason}", hint="expected a state dict as torch.save writes it")
        return load_file(out)


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except OSError as error:
        raise FormatError(f"cannot read {path.name!r}: {error.strerror}", hint="name an existing file") from error
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"cannot read {path.name!r}: not a regular file", hint="name an existing file")
    return found.st_size
