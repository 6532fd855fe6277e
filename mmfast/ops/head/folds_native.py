"""The head's folds in C++ (csrc/cpu/logprob.isa.cpp, with the bf16 GEMM of csrc/cpu/gemm*) and in CUDA
(csrc/cuda/logprob.cu): the same functions with the same arguments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import BASE, WRITTEN, Tile, Written
from mmfast.ops.head.outcome import NUMBERS, Kernels
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.launch import row_stride, stream
from mmfast.ops.rows import DTYPE_CODES

SLICE = 2**20  # elements of a transposed matrix that are copied at a time


@lru_cache(maxsize=1)
def has_bf16_gemm() -> bool:
    """Whether this CPU runs the bf16 GEMM of csrc/cpu/gemm.cpp; else bf16 is multiplied as fp32."""
    return bool(native().cpu_has_gemm_bf16())


def bf16_product(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    """Makes out fp32 = a b (+ out), a and b bf16. Of a transposed `a` the GEMM gets slices, as rows."""
    dense = a.stride(1) == 1 or a.shape[1] == 1  # of a lone column torch keeps any stride, and calls it contiguous
    step = a.shape[0] if dense else max(1, SLICE // a.shape[1])
    for start in range(0, a.shape[0], step):
        left, to = (x[start : start + step] for x in (a, out))
        left = left if dense else left.contiguous()
        native().cpu_gemm_bf16(
            left, b, to, *to.shape, a.shape[1], left.stride(0), *b.stride(), to.stride(0), accumulate,
            torch.get_num_threads(),
        )  # fmt: skip


class NativeFolds(Kernels):
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
            super().product(a, b, out, accumulate)

    def _queue(self, tensor: Tensor) -> int:
        """A fold's last argument is the number of threads on CPU, the current stream on a GPU."""
        return torch.get_num_threads() if self.on_cpu else stream(tensor)

    def _tile(self, tile: Tile, spec: HeadSpec, out: Tensor | None, out_dtype: torch.dtype) -> tuple[Any, ...]:
        """LogitTile of csrc/ops.h."""
        logits, bias, targets, first = tile
        return (
            logits, *logits.shape, logits.stride(0), DTYPE_CODES[logits.dtype], bias, targets, first, spec.softcap,
            spec.temperature, out, row_stride(out), DTYPE_CODES[out_dtype],
        )  # fmt: skip

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, to: Written) -> None:
        assert stats.is_contiguous() and (to.base is None or to.base.is_contiguous())
        written = tile.logits if to.probs is None else to.probs
        self._run(
            "forward", *self._tile(tile, spec, to.probs, written.dtype), stats, spec.entropy, spec.squares, spec.total,
            to.probs_z, row_stride(to.probs_z), to.base, to.sums, 0 if to.sums is None else to.sums.shape[1],
            row_stride(to.sums), self._queue(stats),
        )  # fmt: skip

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: HeadSpec, out: Tensor
    ) -> None:
        vectors = [None if t is None else t.contiguous() for t in (lse, a, b, d)]
        self._run("gradient", *self._tile(tile, spec, out, out.dtype), *vectors, self._queue(out))

    def outcome(
        self, stats: Tensor, bases: Tensor | None, vocab: int, spec: HeadSpec, e: bool, normalise: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.on_cpu:
            return super().outcome(stats, bases, vocab, spec, e, normalise)
        rows = stats.shape[1]
        told, numbers = stats.new_empty((2, rows) if spec.entropy_grad else rows), stats.new_empty(NUMBERS, rows)
        self.module.cuda_head_outcome(
            stats, stats[BASE] if e else None, stats[WRITTEN] if e else None, told, numbers, bases, rows, vocab,
            0 if bases is None else bases.shape[0], *spec[:6], normalise, stream(stats),
        )  # fmt: skip
        return told, numbers

    def combine(
        self, dtype: torch.dtype, a: Tensor, p: Tensor, index: Tensor | None = None, scale: Tensor | None = None,
        b: Tensor | None = None, q: Tensor | None = None, c: Tensor | None = None, r: Tensor | None = None,
        inverse: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        if self.on_cpu:
            return super().combine(dtype, a, p, index, scale, b, q, c, r, inverse)
        p = p if p.dtype == dtype else p.to(dtype)  # emulated: fp16 is kept in fp32 on a host
        assert p.is_contiguous() and (index is None or index.is_contiguous())
        copies, offsets = inverse or (None, None)
        out = p.new_empty(a.shape[0] if offsets is None else offsets.shape[0] - 1, p.shape[1])
        self.module.cuda_head_combine(
            out, p, q, r, index, copies, offsets, a, scale, b, c, *out.shape, a.stride(0), row_stride(b),
            row_stride(q), DTYPE_CODES[dtype], DTYPE_CODES[(p if q is None else q).dtype], stream(out),
        )  # fmt: skip
        return out

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        assert scale.is_contiguous() and entry.is_contiguous()
        self._run(
            "finish", kept, scale, entry, targets, *kept.shape, kept.stride(0), width, DTYPE_CODES[kept.dtype],
            self._queue(kept),
        )  # fmt: skip
