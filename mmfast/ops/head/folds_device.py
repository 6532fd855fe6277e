"""The head's folds on a GPU, as folds.py asks for them: CUDA (csrc/cuda/fold.cu) and Triton (kernels/fold.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.head.folds import FoldSpec
from mmfast.ops.head.gemm import torch_product
from mmfast.ops.launch import address, stream
from mmfast.ops.rows import DTYPE_CODES


def _stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


class CudaFolds:
    """`module` holds the native functions; tests put in one that runs the same kernels on the host."""

    low_precision_tiles = True

    def __init__(self, module: Any = None) -> None:
        self.module: Any = module or native()

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        torch_product(a, b, out, accumulate)

    def _tile(self, tile: Tensor, bias: Tensor | None, targets: Tensor, first: int, spec: FoldSpec) -> Any:
        rows, width = tile.shape
        return self.module.FoldTile(
            tile.data_ptr(), tile.stride(0), rows, width, DTYPE_CODES[tile.dtype], address(bias), targets.data_ptr(),
            first, spec.softcap or 0.0, spec.temperature,
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
        out = tile if probs is None and probs_z is None else probs if probs is not None else probs_z
        assert out is not None and stats.is_contiguous()
        self.module.cuda_fold_forward(
            self._tile(tile, bias, targets, first, spec), stats.data_ptr(), DTYPE_CODES[out.dtype], address(probs),
            _stride(probs), address(probs_z), _stride(probs_z), stream(tile),
        )  # fmt: skip

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
        lse, a, d = lse.contiguous(), a.contiguous(), d.contiguous()
        b = None if b is None else b.contiguous()
        self.module.cuda_fold_gradient(
            self._tile(tile, bias, targets, first, spec), lse.data_ptr(), a.data_ptr(), address(b), d.data_ptr(),
            DTYPE_CODES[out.dtype], out.data_ptr(), out.stride(0), stream(tile),
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
        from mmfast.kernels.fold import fold_forward

        fold_forward(tile, bias, targets, first, stats, spec.softcap, spec.temperature, probs, probs_z)

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
        from mmfast.kernels.fold import fold_gradient

        fold_gradient(tile, bias, targets, first, lse, a, b, d, spec.softcap, spec.temperature, out)

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        from mmfast.kernels.fold import fold_rescale

        fold_rescale(acc, factor)

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        from mmfast.kernels.fold import fold_finish

        fold_finish(kept, scale, width, targets, entry)
