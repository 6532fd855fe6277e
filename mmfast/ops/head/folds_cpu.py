"""The head's folds in C++ (csrc/cpu/logprob.isa.cpp) and its bf16 GEMM with fp32 results (csrc/cpu/gemm*)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import FoldSpec
from mmfast.ops.head.gemm import torch_product
from mmfast.ops.launch import address
from mmfast.ops.rows import DTYPE_CODES


@lru_cache(maxsize=1)
def bf16_engine() -> str:
    """The fast bf16 GEMM engine of this CPU, or "" if it has none (bf16 is then multiplied as fp32)."""
    module: Any = native()
    engine = module.cpu_gemm_engines().split(",")[0]
    return "" if engine == "emulated" else engine


def bf16_product(a: Tensor, b: Tensor, out: Tensor, accumulate: bool, engine: str) -> None:
    """out fp32 = a b (+ out), a and b bf16, the columns of a one element apart."""
    module: Any = native()
    a_column = 1 if a.shape[1] == 1 else a.stride(1)  # of a lone column torch keeps any stride, and calls it contiguous
    module.cpu_gemm_bf16(
        a.data_ptr(), a.stride(0), a_column, b.data_ptr(), *b.stride(), out.data_ptr(), out.stride(0), out.shape[0],
        out.shape[1], a.shape[1], accumulate, torch.get_num_threads(), engine,
    )  # fmt: skip


class CpuFolds:
    low_precision_tiles = False

    def __init__(self) -> None:
        self.module: Any = native()

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        engine = bf16_engine() if a.dtype == torch.bfloat16 and out.dtype == torch.float32 else ""
        if engine and a.numel() and b.numel() and out.stride(1) == 1:
            bf16_product(a if a.stride(1) == 1 else a.contiguous(), b, out, accumulate, engine)
        else:
            torch_product(a, b, out, accumulate)

    def _tile(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        spec: FoldSpec,
        out: Tensor | None,
    ) -> Any:
        out_dtype = tile.dtype if out is None else out.dtype
        return self.module.LogitTile(
            tile.data_ptr(), *tile.shape, tile.stride(0), DTYPE_CODES[tile.dtype], address(bias), targets.data_ptr(),
            first, spec.softcap or 0.0, spec.temperature, address(out), 0 if out is None else out.stride(0),
            DTYPE_CODES[out_dtype], torch.get_num_threads(),
        )  # fmt: skip

    def forward(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        stats: Tensor,
        spec: FoldSpec,
        probs: Tensor | None,
        probs_z: Tensor | None,
    ) -> None:
        z_stride = 0 if probs_z is None else probs_z.stride(0)
        arguments = self._tile(tile, bias, targets, first, spec, probs)
        self.module.cpu_fold_forward(
            arguments, stats.data_ptr(), spec.entropy, spec.squares, spec.total, address(probs_z), z_stride
        )

    def gradient(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        lse: Tensor,
        a: Tensor,
        b: Tensor | None,
        d: Tensor,
        spec: FoldSpec,
        out: Tensor,
    ) -> None:
        arguments = self._tile(tile, bias, targets, first, spec, out)
        vectors = [None if t is None else t.contiguous() for t in (lse, a, b, d)]
        self.module.cpu_fold_gradient(arguments, *(address(t) for t in vectors))

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        code = DTYPE_CODES[acc.dtype]
        threads = torch.get_num_threads()
        self.module.cpu_rescale(acc.data_ptr(), factor.data_ptr(), *acc.shape, acc.stride(0), code, threads)

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        scale, entry = scale.contiguous(), entry.contiguous()
        self.module.cpu_finish(
            kept.data_ptr(), scale.data_ptr(), entry.data_ptr(), targets.data_ptr(), *kept.shape, width,
            DTYPE_CODES[kept.dtype], torch.get_num_threads(),
        )  # fmt: skip
