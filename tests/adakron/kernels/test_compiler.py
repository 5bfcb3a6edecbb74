"""Finding, compiling and keeping the native library, with real compilers and with none."""

import ctypes
import logging
import os
import subprocess
import sys

import pytest

from adakron.kernels import compiler
from adakron.kernels.compiler import CompilerError, native_library

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C++ compiler here: native kernels are off")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", tuple(flag.replace("-O3", "-O0") for flag in compiler.FLAGS))  # in a second
    native_library.cache_clear()
    yield tmp_path / "adakron"
    native_library.cache_clear()


@needs_compiler
def test_it_compiles_once_and_loads_what_is_there_after_that(cache, monkeypatch):
    assert isinstance(native_library(), ctypes.CDLL)
    (library,) = cache.iterdir()
    assert library.suffix == ".so"
    native_library.cache_clear()
    ran = []
    run = compiler._run
    monkeypatch.setattr(compiler, "_run", lambda command: (ran.append(command), run(command))[1])
    assert native_library() is not None
    assert [command[1:] for command in ran] == [["--version"]]
    assert list(cache.iterdir()) == [library]


@needs_compiler
@pytest.mark.parametrize("part", ["SOURCE", "HEADER"])
def test_another_source_is_another_library(cache, monkeypatch, tmp_path, part):
    native_library()
    native_library.cache_clear()
    source = getattr(compiler, part)
    changed = tmp_path / source.name
    changed.write_text(source.read_text() + "\n// changed\n")
    monkeypatch.setattr(compiler, part, changed)
    native_library()
    assert len(list(cache.iterdir())) == 2


def assert_off(caplog, message):
    with caplog.at_level(logging.WARNING, "adakron"):
        assert native_library() is None
        assert native_library() is None
    (record,) = caplog.records
    assert "native kernels are off, plain torch runs instead" in record.message
    assert message in record.message


def test_without_a_compiler_one_line_says_so(cache, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    assert_off(caplog, "no C++ compiler: g++ is not installed")


def test_a_compiler_that_fails_is_no_compiler(cache, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "false")
    assert_off(caplog, "failed")


@needs_compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind(cache, monkeypatch, caplog, tmp_path):
    broken = tmp_path / "native.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(compiler, "SOURCE", broken)
    assert_off(caplog, "error")
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_library_that_does_not_load_is_said(cache, monkeypatch, caplog):
    compiler._compiled(compiler._compiler()).write_bytes(b"not a library")
    assert_off(caplog, "do not load")


def test_a_folder_that_others_may_write_to_is_refused(cache):
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with pytest.raises(CompilerError, match="writable by nobody else"):
        compiler._folder()


def test_a_home_that_cannot_be_written_is_said(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(CompilerError, match="no folder for compiled code"):
        compiler._folder()


@needs_compiler
def test_it_runs_on_the_openmp_runtime_of_torch_and_brings_no_other():
    code = (
        "import torch; from adakron.kernels.compiler import native_library; native_library(); "
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'libomp' in l or 'iomp' in l}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "1"
