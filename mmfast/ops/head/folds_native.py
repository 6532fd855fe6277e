"""The head's folds in C++ (csrc/cpu/logprob.isa.cpp, with the bf16 GEMM of csrc/cpu/gemm*) and in CUDA
(csrc/cuda/logprob.cu): the same functions with the same arguments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import Folds, Tile
from mmfast.ops.head.gemm import torch_product
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.launch import address, row_stride, stream
from mmfast.ops.rows import DTYPE_CODES

SLICE = 2**20  # elements of a transposed matrix that are copied at a time


@lru_cache(maxsize=1)
def has_bf16_gemm() -> bool:
    """Whether this CPU runs the bf16 GEMM of csrc/cpu/gemm.cpp; else bf16 is multiplied as fp32."""
    module: Any = native()
    return module.cpu_has_gemm_bf16()


def bf16_product(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    """Makes out fp32 = a b (+ out), a and b bf16. Of a transposed `a` the GEMM gets slices, as rows."""
    module: Any = native()
    dense = a.stride(1) == 1 or a.shape[1] == 1  # of a lone column torch keeps any stride, and calls it contiguous
    step = a.shape[0] if dense else max(1, SLICE // a.shape[1])
    for start in range(0, a.shape[0], step):
        left, to = (x[start : start + step] for x in (a, out))
        left = left if dense else left.contiguous()
        module.cpu_gemm_bf16(
            left.data_ptr(), left.stride(0), 1, b.data_ptr(), *b.stride(), to.data_ptr(), to.stride(0), *to.shape,
            a.shape[1], accumulate, torch.get_num_threads(),
        )  # fmt: skip


class NativeFolds(Folds):
    """The folds of one half of the native module: "cpu" or "cuda". Tests put in a module that runs the CUDA kernels on
    the host."""

    def __init__(self, half: str, module: Any = None) -> None:
        self.half, self.on_cpu, self.low_precision_tiles = half, half == "cpu", half == "cuda"
        self.module: Any = module or native()

    def _run(self, fold: str, *arguments: Any) -> None:
        getattr(self.module, f"{self.half}_fold_{fold}")(*arguments)

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        mixed = self.on_cpu and a.dtype == torch.bfloat16 and out.dtype == torch.float32
        if mixed and a.numel() and b.numel() and out.stride(1) == 1 and has_bf16_gemm():
            bf16_product(a, b, out, accumulate)
        else:
            torch_product(a, b, out, accumulate)

    def _queue(self, tensor: Tensor) -> int:
        """A fold's last argument is the number of threads on CPU, the current stream on a GPU."""
        return torch.get_num_threads() if self.on_cpu else stream(tensor)

    def _tile(self, tile: Tile, spec: HeadSpec, out: Tensor | None, out_dtype: torch.dtype) -> Any:
        logits, bias, targets, first = tile
        return self.module.LogitTile(
            logits.data_ptr(), *logits.shape, logits.stride(0), DTYPE_CODES[logits.dtype], address(bias),
            targets.data_ptr(), first, spec.softcap, spec.temperature, address(out), row_stride(out),
            DTYPE_CODES[out_dtype],
        )  # fmt: skip

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, probs: Tensor | None, probs_z: Tensor | None) -> None:
        assert stats.is_contiguous()
        written = tile.logits if probs is None and probs_z is None else probs if probs is not None else probs_z
        assert written is not None
        self._run(
            "forward", self._tile(tile, spec, probs, written.dtype), stats.data_ptr(), spec.entropy, spec.squares,
            spec.total, address(probs_z), row_stride(probs_z), self._queue(stats),
        )  # fmt: skip

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: HeadSpec, out: Tensor
    ) -> None:
        vectors = [None if t is None else t.contiguous() for t in (lse, a, b, d)]
        addresses = (address(t) for t in vectors)
        self._run("gradient", self._tile(tile, spec, out, out.dtype), *addresses, self._queue(out))

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        factor = factor.contiguous()
        self._run(
            "rescale", acc.data_ptr(), factor.data_ptr(), *acc.shape, acc.stride(0), DTYPE_CODES[acc.dtype],
            self._queue(acc),
        )  # fmt: skip

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        assert kept.is_contiguous()
        scale, entry = scale.contiguous(), entry.contiguous()
        self._run(
            "finish", kept.data_ptr(), scale.data_ptr(), entry.data_ptr(), targets.data_ptr(), *kept.shape, width,
            DTYPE_CODES[kept.dtype], self._queue(kept),
        )  # fmt: skip
