"""native.cpp as a loaded library: compiled once a machine, by the C++ compiler that is there.

The result is kept in a folder that nobody else may write to, under a name made of everything that decides what it is:
the source, the flags, the compiler, the processor and the OpenMP runtime. Knows compilers and files; nothing of what
the functions do.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.cpp")
HEADER = Path(__file__).with_name("vectors.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
TIMEOUT_S = 120

_log = logging.getLogger(__name__)


class CompilerError(Exception):
    """There is no library, and why."""


@cache
def native_library() -> ctypes.CDLL | None:
    """The library, compiled first if need be (some seconds); None, and one line in the log, where it cannot be had."""
    try:
        return _load(_compiled(_compiler()))
    except CompilerError as error:
        _log.warning("native kernels are off, plain torch runs instead: %s", error)
        return None


def _compiler() -> str:
    """CXX where it is set, else g++: its OpenMP is the one that torch brings. Raises CompilerError."""
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise CompilerError(f"no C++ compiler: {wanted} is not installed")
    return found


def _openmp() -> Path | None:
    """The OpenMP runtime that torch itself runs on. A second one beside it would bring threads of its own."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return found[0] if found else None


def _compiled(compiler: str) -> Path:
    """Path of the library. Raises CompilerError."""
    openmp = _openmp()
    version = _run([compiler, "--version"])
    parts = (SOURCE.read_text(), HEADER.read_text(), *FLAGS, compiler, version, str(openmp), _processor())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    library = _folder() / f"native-{digest[:32]}.so"
    if library.is_file():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        compiled, linked = Path(work, "native.o"), Path(work, "native.so")
        _run([compiler, *FLAGS, "-I", str(HEADER.parent), "-c", str(SOURCE), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), str(openmp) if openmp else "-fopenmp", "-o", str(linked)])
        linked.replace(library)  # at once, and whole: others may be doing the same
    return library


def _processor() -> str:
    """What -march=native looks at: a home folder may be shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part")))


def _folder() -> Path:
    """Where libraries are kept: a folder of this user's alone. Raises CompilerError."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adakron"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:
        raise CompilerError(f"no folder for compiled code: {error}") from error
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CompilerError(f"{folder} must belong to this user and be writable by nobody else")
    return folder


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompilerError(f"{command[0]} failed: {lines[0]}")
    return done.stdout


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilerError(f"the compiled kernels do not load: {error}") from error
