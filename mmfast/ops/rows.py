"""Rows by index, with gradients summed in a fixed order: what splice_embeddings and tree_attention share.

gather_rows(x, index)[j] = x[index[j]]. Its backward is a segment sum over the inverse of `index`: the copies of row i
are added in ascending order of j, in fp32 (fp64 for fp64), never by atomics, so that two runs agree to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import choose, native
from .launch import custom_op, stream

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


@custom_op("mmfast::segment_sum")
def segment_sum(values: Tensor, copies: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """Sums values[K, ...] to out[len(offsets) - 1, ...] in one ordered pass."""
    if backend == "torch":
        return segment_sum_torch(values, copies, offsets)
    values = values.contiguous()
    count = offsets.numel() - 1
    out = values.new_empty((count, *values.shape[1:]))
    width = values[0].numel() if values.shape[0] else 0
    if width == 0:
        return out.zero_()
    copies, offsets, code = copies.contiguous(), offsets.contiguous(), DTYPE_CODES[values.dtype]
    if backend == "triton":
        from mmfast.kernels.splice import segment_sum as kernel

        return kernel(values.view(values.shape[0], width), copies, offsets).view_as(out)
    run = getattr(native(), f"{backend}_segment_sum")
    run(values, copies, offsets, out, count, width, code, stream(values))
    return out


@segment_sum.register_fake
def _(values: Tensor, copies: Tensor, offsets: Tensor, backend: str) -> Tensor:
    return values.new_empty((offsets.shape[0] - 1, *values.shape[1:]))


def segment_backend(values: Tensor, backend: str | None = None) -> str:
    reason = "" if values.dtype in DTYPE_CODES else f"{values.dtype} is not supported"
    supported = {"cuda": reason, "triton": reason, "cpu": reason, "torch": ""}
    return choose("segment_sum", values.device, supported, backend)


@custom_op("mmfast::gather_rows")
def _gather_rows(x: Tensor, index: Tensor, copies: Tensor, offsets: Tensor) -> Tensor:
    return x.index_select(0, index)


@_gather_rows.register_fake
def _(x: Tensor, index: Tensor, copies: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty((index.shape[0], *x.shape[1:]))


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[2], inputs[3])


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    copies, offsets = ctx.saved_tensors
    return segment_sum(grad, copies, offsets, segment_backend(grad)), None, None, None


_gather_rows.register_autograd(_backward, setup_context=_setup)


def gather_rows(x: Tensor, index: Tensor, copies: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
    """Returns x[index], differentiable in x. copies and offsets are the inverse of index (Pack.k_copies and
    Pack.k_copy_offsets); without them it is sorted here."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.index_select(0, index)
    if copies is None or offsets is None:
        copies, offsets = invert(index, x.shape[0])
    return _gather_rows(x, index, copies, offsets)
