"""The one place that chooses a backend: cuda -> triton -> cpu -> torch, by pure predicates on device, dtype, shape."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from types import ModuleType

import torch

BACKENDS = ("cuda", "triton", "cpu", "torch")


@lru_cache(maxsize=1)
def native() -> ModuleType | None:
    """mmfast._C, or None where it was not built. torch is imported first: it brings the one OpenMP runtime."""
    if importlib.util.find_spec("mmfast._C") is None:
        return None
    import mmfast._C as native_module

    return native_module


@lru_cache(maxsize=1)
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def available(backend: str, device: torch.device) -> str:
    """Empty if `backend` can run on `device` at all; else the reason why not."""
    if backend == "torch":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return f"backend 'cpu' needs CPU tensors, these are on {device}"
        return "" if native() else "mmfast._C was not built (pip install . with a C++ compiler)"
    if backend == "cuda":
        if device.type != "cuda":
            return f"backend 'cuda' needs CUDA tensors, these are on {device}"
        module = native()
        return "" if module and module.have_cuda else "mmfast._C has no CUDA half (build where nvcc is)"
    if backend == "triton":
        if not has_triton():
            return "triton is not installed"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cuda" or interpreted:
            return ""
        return f"backend 'triton' needs CUDA tensors (or TRITON_INTERPRET=1), these are on {device}"
    return f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}"


def choose(op: str, device: torch.device, supported: dict[str, str], backend: str | None = None) -> str:
    """Pick the backend of one call.

    `supported` maps each backend that implements the op to "" or to the reason why these arguments do not suit it.
    `backend=` and then MMFAST_BACKEND override the choice; an override that cannot be honoured raises.
    """
    wanted = backend or os.environ.get("MMFAST_BACKEND") or ""
    if wanted:
        reason = available(wanted, device) or supported.get(wanted, f"{op} has no {wanted} implementation")
        if reason:
            raise ValueError(f"{op}: backend {wanted!r} was asked for but cannot be used: {reason}")
        return wanted
    for name in BACKENDS:
        if name == "triton" and device.type == "cpu":
            continue  # the interpreter is for tests, which ask for it by name
        if supported.get(name, "missing") == "" and not available(name, device):
            return name
    return "torch"
