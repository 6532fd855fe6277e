"""Builds the CUDA kernels for the host (tests/kernels/emulate.h), once for each state of their sources.

Every test that runs them does so three times, with blocks, warps and lanes in each of ORDERS (conftest.py); in the last
one every access to memory is watched (racecheck.cpp).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mmfast.ops import dispatch, preference_kernels, rows, splice
from mmfast.ops.head import backends, folds_native
from mmfast.ops.head.folds_native import NativeFolds

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "tests/kernels/planted.cpp"]
OTHERS = [ROOT / "csrc/cuda/bindings.cpp", ROOT / "tests/kernels/emulated.cpp", ROOT / "tests/kernels/racecheck.cpp"]
ORDERS = ("ascending", "descending", "random")


def cuda_headers() -> Path | None:
    """The toolkit's include folder: the emulation uses its headers, not its compiler."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parents[1])]
    folders = [Path(home) / "include" for home in homes if home]
    return next((folder for folder in folders if (folder / "cuda_bf16.h").exists()), None)


@lru_cache(maxsize=1)
def emulated() -> ModuleType:
    headers, compiler = cuda_headers(), shutil.which(os.environ.get("CXX", "c++"))
    if headers is None or compiler is None:
        pytest.skip("the CUDA kernels are emulated with the CUDA toolkit's headers, which are not here")
    import pybind11

    digest = hashlib.sha256()
    for source in [
        *SOURCES,
        *OTHERS,
        *sorted((ROOT / "csrc").glob("**/*.h")),
        ROOT / "tests/kernels/emulate.h",
        *sorted((ROOT / "csrc").glob("**/*.cuh")),
    ]:
        digest.update(source.read_bytes())
    folder = ROOT / "build" / "emulated" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            includes = [
                ROOT / "csrc",
                ROOT / "tests/kernels",
                headers,
                pybind11.get_include(),
                sysconfig.get_paths()["include"],
            ]
            flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w", "-DMMFAST_EMULATE", "-x", "c++"]
            flags += [f"-I{folder}" for folder in includes]
            sources = [*SOURCES, *OTHERS]
            objects = [folder / f"{source.name}.o" for source in sources]
            watched = {source: ["-fsanitize=thread"] for source in SOURCES}  # the runtime of that is racecheck.cpp
            builds = [
                subprocess.Popen([compiler, *flags, *watched.get(source, []), "-c", str(source), "-o", str(result)])
                for source, result in zip(sources, objects, strict=True)
            ]
            assert not any([build.wait() for build in builds]), "the emulation does not compile"
            partial = target.with_suffix(".partial")
            subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(partial)], check=True)
            partial.rename(target)
    spec = importlib.util.spec_from_file_location("emulated", target)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_in(order: str) -> None:
    emulated().order(ORDERS.index(order))
    emulated().watch(order == ORDERS[-1])


def folds_on_a_gpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name to ask a head op for, so that it runs these folds: without a device "cuda" stands in for "torch"."""
    if backend == "triton":
        pytest.importorskip("triton")
    elif not torch.cuda.is_available():
        module = emulated()
        monkeypatch.setitem(backends.FOLDS, "torch", lambda: NativeFolds("cuda", module))
        return "torch"
    return backend


def emulate_cuda(monkeypatch: pytest.MonkeyPatch, module: Any = None) -> None:
    """The public ops run their CUDA backend on the host: "cuda" is available there, and the first choice."""
    module = module or emulated()
    available = dispatch.available
    monkeypatch.setattr(dispatch, "available", lambda name, device: "" if name == "cuda" else available(name, device))
    for place in (folds_native, preference_kernels, rows, splice):
        monkeypatch.setattr(place, "native", lambda: module)
