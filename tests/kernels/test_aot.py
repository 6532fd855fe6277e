"""Every Triton kernel compiles to machine code for Ampere, Hopper and Blackwell, and keeps its values in registers."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPILL_LIMIT = 64  # bytes


def compiled(cache: Path) -> list[dict]:
    """In a process of its own: where kernels are interpreted they cannot be compiled."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.aot", "80", "90", "100"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def kernel_names() -> set[str]:
    """Every function under @triton.jit that can be launched: the ones whose name ends in _kernel."""
    import mmfast.kernels

    names = set()
    for module in pkgutil.iter_modules(mmfast.kernels.__path__):
        content = vars(importlib.import_module(f"mmfast.kernels.{module.name}"))
        names |= {name for name in content if name.endswith("_kernel")}
    return names


def test_every_kernel_compiles_without_spills(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    rows = compiled(tmp_path)
    table = "\n".join(f"{r['kernel']:28} {r['variant']:24} {r}" for r in rows)
    print(table)
    names = kernel_names()
    assert {(row["kernel"], row["arch"]) for row in rows} == {(name, arch) for name in names for arch in (80, 90, 100)}
    assert all(row["cubin_bytes"] > 0 for row in rows)
    spilled = [r for r in rows if r["spill_stores"] > SPILL_LIMIT or r["spill_loads"] > SPILL_LIMIT]
    assert not spilled, table
