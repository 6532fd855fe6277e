"""The head's folds on a GPU, as folds.py asks for them: CUDA (csrc/cuda/fold.cu) and Triton (kernels/fold.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import FoldSpec, Tile
from mmfast.ops.head.gemm import torch_product
from mmfast.ops.launch import address, row_stride, stream
from mmfast.ops.rows import DTYPE_CODES


class CudaFolds:
    """`module` holds the native functions; tests put in one that runs the same kernels on the host."""

    low_precision_tiles = True

    def __init__(self, module: Any = None) -> None:
        self.module: Any = module or native()

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        torch_product(a, b, out, accumulate)

    def _tile(self, tile: Tile, spec: FoldSpec) -> Any:
        logits, bias, targets, first = tile
        return self.module.FoldTile(
            logits.data_ptr(), logits.stride(0), *logits.shape, DTYPE_CODES[logits.dtype], address(bias),
            targets.data_ptr(), first, spec.softcap or 0.0, spec.temperature,
        )  # fmt: skip

    def forward(self, tile: Tile, stats: Tensor, spec: FoldSpec, probs: Tensor | None, probs_z: Tensor | None) -> None:
        out = next((t for t in (probs, probs_z) if t is not None), tile.logits)
        assert stats.is_contiguous()
        self.module.cuda_fold_forward(
            self._tile(tile, spec), stats.data_ptr(), DTYPE_CODES[out.dtype], address(probs),
            row_stride(probs), address(probs_z), row_stride(probs_z), stream(tile.logits),
        )  # fmt: skip

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: FoldSpec, out: Tensor
    ) -> None:
        lse, a, d = lse.contiguous(), a.contiguous(), d.contiguous()
        b = None if b is None else b.contiguous()
        self.module.cuda_fold_gradient(
            self._tile(tile, spec), lse.data_ptr(), a.data_ptr(), address(b), d.data_ptr(),
            DTYPE_CODES[out.dtype], out.data_ptr(), out.stride(0), stream(tile.logits),
        )  # fmt: skip

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        rows, width = acc.shape
        factor = factor.contiguous()
        self.module.cuda_fold_rescale(acc.data_ptr(), acc.stride(0), rows, width, factor.data_ptr(), stream(acc))

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        rows, columns = kept.shape
        scale, entry = scale.contiguous(), entry.contiguous()
        self.module.cuda_fold_finish(
            kept.data_ptr(), kept.stride(0), rows, columns, DTYPE_CODES[kept.dtype], scale.data_ptr(), scale.stride(0),
            scale.shape[1], width, targets.data_ptr(), entry.data_ptr(), stream(kept),
        )  # fmt: skip


class TritonFolds:
    low_precision_tiles = True

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        torch_product(a, b, out, accumulate)

    def forward(self, tile: Tile, stats: Tensor, spec: FoldSpec, probs: Tensor | None, probs_z: Tensor | None) -> None:
        from mmfast.kernels.fold import fold_forward

        fold_forward(*tile, stats, spec.softcap, spec.temperature, probs, probs_z)

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: FoldSpec, out: Tensor
    ) -> None:
        from mmfast.kernels.fold import fold_gradient

        fold_gradient(*tile, lse, a, b, d, spec.softcap, spec.temperature, out)

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        from mmfast.kernels.fold import fold_rescale

        fold_rescale(acc, factor)

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        from mmfast.kernels.fold import fold_finish

        fold_finish(kept, scale, width, targets, entry)
