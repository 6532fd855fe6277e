"""The one place that chooses a backend: cuda -> triton -> cpu -> torch, by pure predicates on device, dtype, shape."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch

BACKENDS = ("cuda", "triton", "cpu", "torch")
T = TypeVar("T")


def constant(question: Callable[..., T]) -> Callable[..., T]:
    """Makes a question about this machine be asked once. torch.compile takes the answer as it is: tracing into the
    question, as it does into a plain functools.cache, ends the graph at imports and at mmfast._C."""
    answers = cache(question)

    def answer(*about: Any) -> T:
        return answers(*about)

    answer.cache_clear = answers.cache_clear  # type: ignore[attr-defined]
    answer.__doc__, answer.__name__ = question.__doc__, question.__name__
    answer._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch.compiler.assume_constant_result
    return answer  # does, which imports the compiler: a second, and Triton


@lru_cache(maxsize=1)
def native() -> Any:
    """Returns mmfast._C, or None where it was not built. torch comes first: it brings the one OpenMP runtime."""
    if importlib.util.find_spec("mmfast._C") is None:
        return None
    import mmfast._C as native_module

    return native_module


@constant
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@constant
def cuda_half_fault(device: torch.device) -> str:
    """Returns "" if the CUDA half of mmfast._C can run on `device`; else why not.

    Its runtime is linked in, so it may ask for a newer driver than torch does, and holds code for some GPUs only. Asked
    once: a launch that cannot work would raise, where another backend does the same.
    """
    module = native()
    if module is None or not module.have_cuda:
        return "mmfast._C has no CUDA half (build where nvcc is)"
    driver, runtime = module.cuda_driver_version(), module.cuda_runtime_version()
    if not driver or not torch.cuda.is_available():
        return ""  # no driver or no GPU, so no tensor that is more than a fake one
    versions = f"the driver is for CUDA {dotted(driver)}, the CUDA half was built with {dotted(runtime)}"
    if driver // 1000 < runtime // 1000:  # within one major version a newer runtime runs on an older driver
        return f"{versions}: update the driver, or build with an older toolkit (CUDA_HOME)"
    capability = torch.cuda.get_device_capability(device)
    code = _device_code(module.cuda_architectures, capability)
    if not code:
        name = f"{capability[0]}.{capability[1]}"
        return (
            f"the CUDA half was built for {module.cuda_architectures}, this GPU is {name}: build again with "
            f"TORCH_CUDA_ARCH_LIST={name}"
        )
    if code == "virtual" and driver < runtime:
        return (
            f"{versions}, and it cannot compile the newer one's PTX: update the driver, or name this GPU in the build"
        )
    return ""


def dotted(version: int) -> str:
    """Writes CUDA's 12040 as 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _device_code(architectures: str, capability: tuple[int, int]) -> str:
    """CMake's list ("80-real,90a-real,80-virtual") holds for a GPU code that is "real", "virtual" (PTX), or ""."""
    best = ""
    for item in architectures.split(","):
        entry = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual|)", item)
        if entry is None:
            return "real"  # a word such as "native": the builder's own choice
        major, minor, letter, kind = int(entry[1]), int(entry[2]), entry[3], entry[4]
        exact = (major, minor) == capability
        if kind != "-virtual" and major == capability[0] and minor <= capability[1] and (exact or letter != "a"):
            return "real"
        if kind != "-real" and (major, minor) <= capability and (exact or not letter):
            best = "virtual"
    return best


def available(backend: str, device: torch.device) -> str:
    """Returns "" if `backend` can run on `device` at all; else the reason why not."""
    if backend == "torch":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return f"backend 'cpu' needs CPU tensors, these are on {device}"
        return "" if native() else "mmfast._C was not built (pip install . with a C++ compiler)"
    if backend == "cuda":
        if device.type != "cuda":
            return f"backend 'cuda' needs CUDA tensors, these are on {device}"
        return cuda_half_fault(device)
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
    asked = backend or os.environ.get("MMFAST_BACKEND") or ""
    if asked:
        reason = available(asked, device) or supported.get(asked, f"{op} has no {asked} implementation")
        if reason:
            raise ValueError(f"{op}: backend {asked!r} was asked for but cannot be used: {reason}")
        return asked
    for name in BACKENDS:
        if name == "triton" and device.type != "cuda":
            continue  # the interpreter is for tests, which ask for it by name
        if supported.get(name, "missing") == "" and not available(name, device):
            return name
    return "torch"
