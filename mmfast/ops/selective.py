"""selective_logprob: log softmax(logits)[target], for trainers that already hold logits [U,V]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.arguments import FLOATS, INDEX, check, check_range, refuse_double_backward
from mmfast.ops.head.backends import folds_for
from mmfast.ops.head.backward import slopes_of
from mmfast.ops.head.call import logit_spec
from mmfast.ops.head.folds import STATS, Folds, Tile, Written
from mmfast.ops.head.outcome import LSE, NUMBERS
from mmfast.ops.head.spec import TILE_BUDGET, HeadSpec, budget_for
from mmfast.ops.launch import LeanOp
from mmfast.ops.logprob import select
from mmfast.ops.rows import accumulator

OP = "selective_logprob"


def selective_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
    entropy_grad: bool = False,
    return_logsumsq: bool = False,
    return_mean_logit: bool = False,
    return_top1: bool = False,
    inplace_backward: bool = False,
    backend: str | None = None,
) -> Any:
    """Returns log-probabilities fp32 [U] of `targets` int64 [U] under softmax(logits [U,V]); see linear_logprob.

    inplace_backward: the gradient overwrites `logits`, which saves [U,V]; nothing else may read them afterwards, and a
    second backward pass through them raises.
    """
    check(OP, "logits", logits, FLOATS, ("U", "V"))
    if logits.shape[1] == 0:
        raise ValueError(f"{OP}: logits has no columns, shape {list(logits.shape)}")
    check(OP, "targets", targets, INDEX, (logits.shape[0],), logits.device)
    spec = logit_spec(OP, softcap, temperature, return_entropy, entropy_grad, return_logsumsq, return_mean_logit)
    if inplace_backward and logits.requires_grad and logits.is_leaf:
        raise ValueError(f"{OP}: inplace_backward=True would overwrite logits, a leaf whose value is a parameter's")
    if inplace_backward and any(s == 0 and n > 1 for s, n in zip(logits.stride(), logits.shape, strict=True)):
        raise ValueError(
            f"{OP}: inplace_backward=True, but the rows or columns of logits share memory (expand): clone it"
        )
    told, numbers = _selective_logprob(logits, targets, spec.flat(), inplace_backward, backend or "")
    return select(told, numbers, spec, return_top1)


def _blocks(logits: Tensor, targets: Tensor, folds: Folds) -> Iterator[tuple[slice, Tile]]:
    """Yields the logits as tiles of all columns, a block of rows each. Most folds take tiles of the accumulator's dtype
    and may overwrite them, so a tile is a copy in one buffer. Others read the logits where they are: one block."""
    rows, vocab = logits.shape
    targets = targets.contiguous()
    if folds.low_precision_tiles and logits.stride(1) == 1:
        yield slice(0, rows), Tile(logits, None, targets, 0)
        return
    height = max(1, min(rows, budget_for(logits.device, TILE_BUDGET) // (4 * vocab)))
    buffer = logits.new_empty(height, vocab, dtype=accumulator(logits.dtype))
    for start in range(0, rows, height):
        block = slice(start, min(start + height, rows))
        yield block, Tile(buffer[: block.stop - start].copy_(logits[block]), None, targets[block], 0)


def _forward(logits: Tensor, targets: Tensor, options: list[float], inplace: bool, backend: str) -> list[Tensor]:
    """Returns told and numbers, as in outcome.Outcome."""
    check_range(OP, "targets", targets, 0, logits.shape[1])
    rows, vocab = logits.shape
    spec, folds = HeadSpec.of(options), folds_for(OP, logits, backend)
    stats = logits.new_zeros(STATS, rows, dtype=accumulator(logits.dtype))  # the folds write what is asked for
    for block, tile in _blocks(logits, targets, folds):
        part = stats[:, block] if len(tile.targets) == rows else stats.new_empty(STATS, len(tile.targets))
        folds.forward(tile, part, spec, Written())
        if part.shape != stats.shape:
            stats[:, block] = part
    return list(folds.outcome(stats, None, vocab, spec, e=False))


def _fake(logits: Tensor, targets: Tensor, options: list[float], inplace: bool, backend: str) -> list[Tensor]:
    acc, rows = accumulator(logits.dtype), logits.shape[0]
    told = (2, rows) if HeadSpec.of(options).entropy_grad else (rows,)
    return [logits.new_empty(told, dtype=acc), logits.new_empty(NUMBERS, rows, dtype=acc)]


def _backward(
    out: Tensor, grad: Tensor, logits: Tensor, targets: Tensor, numbers: Tensor, options: list[float], backend: str
) -> None:
    """Writes the gradient to `out`, which may be the logits."""
    spec, folds = HeadSpec.of(options), folds_for(OP, logits, backend)
    c, h = grad.unbind() if spec.entropy_grad else (grad, None)
    a, b, d = slopes_of(c, h, numbers, spec)
    for block, tile in _blocks(logits, targets, folds):
        # The folds write the accumulator's dtype or bf16: another goes by way of the tile.
        direct = out.dtype in (tile.logits.dtype, torch.bfloat16) and out.stride(1) == 1
        to = out[block] if direct else tile.logits
        folds.gradient(tile, numbers[LSE, block], a[block], None if b is None else b[block], d[block], spec, to)
        if not direct:
            out[block] = to
    torch.autograd.graph.increment_version(out)  # kernels write behind autograd's back


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        logits, targets, ctx.options, ctx.inplace, ctx.backend = arguments
        told, numbers = _selective_logprob.below(*arguments)
        ctx.mark_non_differentiable(numbers)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, targets, numbers)
        return told, numbers

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        refuse_double_backward(OP)
        if grad is None:
            return (None,) * 5
        logits, *saved = ctx.saved_tensors
        out = logits if ctx.inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
        _selective_logprob_backward(out, grad, logits, *saved, ctx.options, ctx.backend)
        return out.detach(), None, None, None, None


_selective_logprob = LeanOp("selective_logprob", _forward, _fake, _Gradient)
_selective_logprob_backward = LeanOp("selective_logprob_backward", _backward, lambda *_: None, writes=("out",))
