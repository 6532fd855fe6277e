"""What a process that trains on CPU tells its allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.job.runtime import keep_freed_memory

CHECK = """
import resource, torch
from mmfast.job.runtime import keep_freed_memory

def faults():
    torch.ones(2**24), torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults(), resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
@pytest.mark.parametrize(
    "settings", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_freed_memory_is_kept_unless_the_user_has_settings(settings: dict[str, str]) -> None:
    """Where it is not, every tensor's pages are new ones, each a fault."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=Path(__file__).parents[2], env={**plain, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, told, after, page = done.stdout.split()
    assert told == str(not settings)
    pages = 5 * 2**26 // int(page)
    if int(before) < 0.9 * pages:
        pytest.skip("the system gives huge pages unasked (transparent_hugepage=always): few faults either way")
    assert int(after) * 10 < int(before) if not settings else int(after) >= 0.9 * pages


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It may have no mallopt, or one that means something else: no library is even opened."""

    def opened(*_: object) -> None:
        raise AssertionError("a library was opened")

    monkeypatch.setattr(ctypes, "CDLL", opened)
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as glibc:
        glibc.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
        with pytest.raises(AssertionError, match="opened"):  # the watch itself
            keep_freed_memory()
    for libc in (("", ""), ("musl", "1.2.4"), ("libc", "7")):
        monkeypatch.setattr(platform, "libc_ver", lambda libc=libc: libc)
        assert not keep_freed_memory()
    assert capfd.readouterr() == ("", "")
