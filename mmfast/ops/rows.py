"""Rows by index, with gradients summed in a fixed order: what splice_embeddings and tree_attention share.

gather_rows(x, index)[j] = x[index[j]]. Its backward is a segment sum over the inverse of `index`: the copies of row i
are added in ascending order of j, in fp32 (fp64 for fp64), never by atomics, so that two runs agree to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .arguments import refuse_double_backward
from .dispatch import choose, native
from .launch import LeanOp, stream

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # csrc/ops.h


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def invert(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns (copies, offsets): copies[offsets[i]:offsets[i+1]] are the j with index[j] == i, ascending. Entries of -1
    are left out. No host sync."""
    order = torch.sort(index, stable=True)
    offsets = torch.searchsorted(order.values, torch.arange(count + 1, device=index.device))
    return order.indices, offsets


def segment_sum_torch(values: Tensor, copies: Tensor, offsets: Tensor) -> Tensor:
    """The oracle: out[i] = sum of values[copies[j]] for j in offsets[i]..offsets[i+1]."""
    rows = values.index_select(0, copies).to(accumulator(values.dtype))
    total = torch.segment_reduce(rows, "sum", offsets=offsets, axis=0, unsafe=True, initial=0)
    return total.to(values.dtype)


def segment_sum(values: Tensor, copies: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """Sums values[K, ...] to out[len(offsets) - 1, ...] in one ordered pass. Not differentiable."""
    if values.requires_grad:
        refuse_double_backward("segment_sum")
    out: Tensor = _segment_sum(values, copies, offsets, backend)[0]
    return out


def _sum(values: Tensor, copies: Tensor, offsets: Tensor, backend: str) -> list[Tensor]:
    if backend == "torch":
        return [segment_sum_torch(values, copies, offsets)]
    values = values.contiguous()
    count, width = offsets.numel() - 1, math.prod(values.shape[1:])
    out = values.new_empty((count, *values.shape[1:]))
    if values.numel() == 0:
        return [out.zero_()]
    copies, offsets, code = copies.contiguous(), offsets.contiguous(), DTYPE_CODES[values.dtype]
    if backend == "triton":
        from mmfast.kernels.splice import segment_sum as kernel

        return [kernel(values.view(values.shape[0], width), copies, offsets).view_as(out)]
    run = getattr(native(), f"{backend}_segment_sum")
    run(values, copies, offsets, out, count, width, code, stream(values))
    return [out]


_segment_sum = LeanOp(
    "segment_sum", _sum,
    lambda values, _, offsets, __: [values.new_empty((offsets.shape[0] - 1, *values.shape[1:]))],
)  # fmt: skip


def segment_backend(values: Tensor, backend: str | None = None) -> str:
    reason = "" if values.dtype in DTYPE_CODES else f"{values.dtype} is not supported"
    supported = {"cuda": reason, "triton": reason, "cpu": reason, "torch": ""}
    return choose("segment_sum", values.device, supported, backend)


def _gather(x: Tensor, index: Tensor, copies: Tensor, offsets: Tensor) -> list[Tensor]:
    return [x.index_select(0, index)]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, copies: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(copies, offsets)
        return tuple(_gather_rows.below(x, index, copies, offsets))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        copies, offsets = ctx.saved_tensors
        return segment_sum(grad, copies, offsets, segment_backend(grad)), None, None, None


_gather_rows = LeanOp("gather_rows", _gather, _gather, _Gradient)


def gather_rows(x: Tensor, index: Tensor, copies: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
    """Returns x[index], differentiable in x. copies and offsets are the inverse of index (Pack.k_copies and
    Pack.k_copy_offsets); without them it is sorted here."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.index_select(0, index)
    if copies is None or offsets is None:
        copies, offsets = invert(index, x.shape[0])
    gathered: Tensor = _gather_rows(x, index, copies, offsets)[0]
    return gathered
