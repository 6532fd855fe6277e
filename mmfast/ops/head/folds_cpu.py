"""The head's folds in C++ (csrc/cpu/logprob.isa.cpp) and its bf16 GEMM with fp32 results (csrc/cpu/gemm*)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import FoldSpec, Tile
from mmfast.ops.head.gemm import torch_product
from mmfast.ops.launch import address, row_stride
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

    def _tile(self, tile: Tile, spec: FoldSpec, out: Tensor | None) -> Any:
        logits, bias, targets, first = tile
        out_dtype = logits.dtype if out is None else out.dtype
        return self.module.LogitTile(
            logits.data_ptr(), *logits.shape, logits.stride(0), DTYPE_CODES[logits.dtype], address(bias),
            targets.data_ptr(), first, spec.softcap or 0.0, spec.temperature, address(out), row_stride(out),
            DTYPE_CODES[out_dtype], torch.get_num_threads(),
        )  # fmt: skip

    def forward(self, tile: Tile, stats: Tensor, spec: FoldSpec, probs: Tensor | None, probs_z: Tensor | None) -> None:
        self.module.cpu_fold_forward(
            self._tile(tile, spec, probs), stats.data_ptr(), spec.entropy, spec.squares, spec.total, address(probs_z),
            row_stride(probs_z),
        )  # fmt: skip

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: FoldSpec, out: Tensor
    ) -> None:
        vectors = [None if t is None else t.contiguous() for t in (lse, a, b, d)]
        self.module.cpu_fold_gradient(self._tile(tile, spec, out), *(address(t) for t in vectors))

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
