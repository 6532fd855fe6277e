"""What a process that trains on CPU tells its allocator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import resource, torch
from mmfast.job.runtime import keep_freed_memory
print(keep_freed_memory())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    torch.ones(2**22)
before = faults()
for _ in range(20):
    torch.ones(2**22)  # 16 MiB, 4096 pages
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
@pytest.mark.parametrize(
    "settings", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_freed_memory_is_kept_unless_the_user_has_settings(settings: dict[str, str]) -> None:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=Path(__file__).parents[2], env={**plain, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, faults = done.stdout.split()
    assert told == str(not settings)
    assert (int(faults) < 10 * 4096) == (not settings)  # each tensor anew would be 20 * 4096
