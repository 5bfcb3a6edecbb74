"""The allocator's setting is taken where the C library is glibc, and does no harm where it is not."""

import ctypes

import pytest

from server.allocator import keep_freed_memory


def test_glibc_takes_the_setting() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")
    assert keep_freed_memory() is True


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
