"""tree_attention: every run attends to its ancestors and, causally, to itself.

Run m holds the queries q_offsets[m]..q_offsets[m+1] of the stream; its keys and values are the stream rows
k_index[k_offsets[m]..k_offsets[m+1]]: its ancestors' tokens, then its own. Causal alignment is bottom-right: query i
of a run sees keys up to i + (keys - queries). One variable-length call does it all, on any of these backends:

    flash3, flash4, flash2   the flash-attn packages      cpu    our own, in fp32 on CPUs with AVX2 or AVX-512
    varlen                   the same, as torch has them  loop   run by run, anywhere
    xformers                 BlockDiagonalCausalFromBottomRightMask

backend="auto" takes the first of them that explain() has nothing against.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import attention_varlen
from .arguments import FLOATS, INDEX, OFFSETS, check, check_offsets, check_range
from .attention_exact import exact_attention
from .attention_varlen import aligned, tree_attention_varlen
from .dispatch import constant, native
from .rows import gather_rows, invert

OP = "tree_attention"
BACKENDS = ("flash3", "flash4", "flash2", "varlen", "xformers", "cpu", "loop")
HALF = (torch.bfloat16, torch.float16)


LIBRARIES = {  # backend -> what must be installed, the module that its function is imported from, the function
    "flash3": ("flash_attn_interface", "flash_attn_interface", "flash_attn_varlen_func"),
    "flash4": ("flash_attn.cute", "flash_attn.cute.interface", "flash_attn_varlen_func"),
    "flash2": ("flash_attn", "flash_attn", "flash_attn_varlen_func"),
    "xformers": ("xformers", "xformers.ops", "memory_efficient_attention"),
}


@constant
def _installed(backend: str) -> str:
    """Returns "" if the library behind `backend` is here and has its operators, else the reason why not."""
    if backend == "varlen":
        return attention_varlen.missing()
    package, module, name = LIBRARIES[backend]
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a library says that was built for another torch, CUDA or Python
        if isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}."):
            return f"{package} is not installed"
        return f"{package} cannot be imported: {' '.join(str(error).split())}"
    operators = sys.modules.get("xformers._cpp_lib")  # without them it imports all the same, and raises when called
    if backend == "xformers" and not getattr(operators, "_built_with_cuda", True):
        return f"xformers has no CUDA operators for torch {torch.__version__}: another release of it may"
    return ""


@constant
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def explain(device: torch.device | str, dtype: torch.dtype, head_dim: int, window: int | None = None) -> dict[str, str]:
    """Says for every backend, in the order of preference, "" if it suits, else the reason why not."""
    device = torch.device(device)
    return {name: _reason(name, device, dtype, head_dim, window) for name in BACKENDS}


def _reason(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, window: int | None) -> str:
    # Ours
    if backend == "loop":
        return ""
    if backend == "cpu":
        return _no_kernel(device, dtype, head_dim)
    # What every library needs, then what each does
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device}"
    if dtype not in HALF:
        return f"needs bfloat16 or float16, this is {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > 256:
        return f"needs a head dimension up to 256 that is a multiple of 8, this is {head_dim}"
    # What is here
    if missing := _installed(backend):
        return missing
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = _capability(device)
    if capability < (8, 0):
        return f"needs sm_80 or newer, this is sm_{capability[0]}{capability[1]}"
    # What each one lacks
    if backend == "flash3" and capability[0] != 9:
        return f"needs sm_90, this is sm_{capability[0]}{capability[1]}"
    if backend == "flash4" and capability[0] < 9:
        return f"needs sm_90 or newer, this is sm_{capability[0]}{capability[1]}"
    if backend in ("flash4", "xformers") and head_dim > 128:
        return f"needs a head dimension up to 128, this is {head_dim}"
    if backend == "flash4" and window:
        return "its backward pass takes no sliding window"
    if backend == "xformers" and window:
        return "is used without a sliding window only"
    return ""


def _no_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why csrc/cpu/attention.isa.cpp does not suit."""
    if device.type != "cpu":
        return f"needs CPU tensors, this is {device}"
    if dtype != torch.float32:
        return f"needs float32, this is {str(dtype).removeprefix('torch.')}"
    if head_dim % 16 or not head_dim:
        return f"needs a head dimension that is a multiple of 16, this is {head_dim}"
    return _no_vectors()


@torch.compiler.assume_constant_result  # a compiled caller cannot look into native code
def _no_vectors() -> str:
    module: Any = native()
    if module is None:
        return "needs mmfast._C, which was not built (pip install . with a C++ compiler)"
    return "needs AVX2 or AVX-512, this CPU has neither" if module.cpu_isa() == "baseline" else ""


def choose_attention(
    device: torch.device, dtype: torch.dtype, head_dim: int, window: int | None, backend: str | None
) -> str:
    asked = backend or os.environ.get("MMFAST_ATTENTION") or "auto"
    if asked == "auto":
        return next(name for name in BACKENDS if not _reason(name, device, dtype, head_dim, window))
    if asked not in BACKENDS:
        raise ValueError(f"{OP}: unknown backend {asked!r}: choose auto or one of {', '.join(BACKENDS)}")
    if reason := _reason(asked, device, dtype, head_dim, window):
        raise ValueError(f"{OP}: backend {asked!r} was asked for but cannot be used: it {reason}")
    return asked


class Runs(NamedTuple):
    """A library's call gets these beside q and the gathered k and v [K, Hkv, Dh]; it returns [T, Hq, Dh]."""

    q_offsets: Tensor  # int32, as are k_offsets
    k_offsets: Tensor
    max_q: int
    max_k: int
    scale: float
    window: int | None

    @property
    def sides(self) -> tuple[int, int]:
        """The flash kernels take the window as (left, right) and do not count the token itself."""
        return (self.window - 1 if self.window else -1, 0)


def _flash(name: str, q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    options: dict[str, Any] = {
        "max_seqlen_q": runs.max_q, "max_seqlen_k": runs.max_k, "window_size": runs.sides,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }  # fmt: skip
    if name == "flash4":
        from flash_attn.cute.interface import flash_attn_varlen_func as attend

        options = {}
    elif name == "flash3":
        from flash_attn_interface import flash_attn_varlen_func as attend
    else:
        from flash_attn import flash_attn_varlen_func as attend
    out = attend(
        q, k, v, cu_seqlens_q=runs.q_offsets, cu_seqlens_k=runs.k_offsets, softmax_scale=runs.scale, causal=True,
        **options,
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out  # some releases return the log-sum-exp too


def _xformers(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

    # The mask is built from host integers: two small copies from the device, which wait for it.
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(
        q_seqlen=runs.q_offsets.diff().tolist(), kv_seqlen=runs.k_offsets.diff().tolist()
    )
    group = q.shape[1] // k.shape[1]
    k, v = (x[:, :, None].expand(-1, -1, group, -1) for x in (k, v))
    q = q.unflatten(1, (k.shape[1], group))
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias, scale=runs.scale)[0].flatten(1, 2)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_index: Tensor, k_offsets: Tensor, *, max_q: int, max_k: int,
    scale: float | None = None, window: int | None = None, k_copies: Tensor | None = None,
    k_copy_offsets: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Attention of q[T, Hq, Dh] over k and v[T, Hkv, Dh] of the stream gives [T, Hq, Dh].

    max_q and max_k are the longest run in queries and in keys (host integers). window counts the token itself; None is
    no limit. k_copies and k_copy_offsets are the inverse of k_index (see Pack); without them it is sorted at each call.
    """
    # Shapes and dtypes, then how they fit together, then the indices.
    check(OP, "q", q, FLOATS, ("T", "Hq", "Dh"))
    device = q.device
    check(OP, "k", k, (q.dtype,), ("S", "Hkv", q.shape[2]), device)
    check(OP, "v", v, (q.dtype,), tuple(k.shape), device)
    check(OP, "q_offsets", q_offsets, OFFSETS, ("M+1",), device)
    check(OP, "k_index", k_index, INDEX, ("K",), device)
    check(OP, "k_offsets", k_offsets, OFFSETS, (q_offsets.shape[0],), device)
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{OP}: q has {q.shape[1]} heads, no multiple of k's {k.shape[1]}")
    if window is not None and window < 1:
        raise ValueError(f"{OP}: window counts the token itself and is at least 1, not {window}; None is no limit")
    if (k_copies is None) != (k_copy_offsets is None):
        raise ValueError(f"{OP}: k_copies and k_copy_offsets go together")
    if k_copies is not None and k_copy_offsets is not None:  # the inverse of k_index
        check(OP, "k_copies", k_copies, INDEX, (k_index.shape[0],), device)
        check(OP, "k_copy_offsets", k_copy_offsets, INDEX, (k.shape[0] + 1,), device)
        check_offsets(OP, "k_copy_offsets", k_copy_offsets, k_index.shape[0])
        check_range(OP, "k_copies", k_copies, 0, k_index.shape[0])
    check_offsets(OP, "q_offsets", q_offsets, q.shape[0])
    check_offsets(OP, "k_offsets", k_offsets, k_index.shape[0])
    check_range(OP, "k_index", k_index, 0, k.shape[0])

    # One call of the backend, on gathered keys and values unless it gathers them itself.
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    if k_copies is None or k_copy_offsets is None:
        k_copies, k_copy_offsets = invert(k_index, k.shape[0])
    name = choose_attention(device, q.dtype, q.shape[2], window, backend)
    if name in ("cpu", "loop") or q.shape[0] == 0:
        exact = name if name == "cpu" and q.shape[0] else "loop"
        inverse = (k_copies, k_copy_offsets)
        return exact_attention(q, k, v, q_offsets, k_index, k_offsets, *inverse, scale, window or 0, exact)[0]
    queries, keys = (x.to(torch.int32).contiguous() for x in (q_offsets, k_offsets))
    if name == "varlen":
        arguments = (q, k, v, queries, k_index, keys, k_copies, k_copy_offsets, max_q, max_k, scale, window or 0)
        return tree_attention_varlen(*arguments)[0]
    k, v = (gather_rows(x, k_index, k_copies, k_copy_offsets) for x in (k, v))
    runs = Runs(queries, keys, max_q, max_k, scale, window)
    library = _xformers if name == "xformers" else partial(_flash, name)
    out = library(aligned(q), k, v, runs)
    if out.requires_grad and not torch.compiler.is_compiling():
        out.register_hook(aligned)
    return out
