"""selective_logprob: log softmax(logits)[target], for trainers that already hold logits [U,V]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops.arguments import FLOATS, INDEX, check, check_range, refuse_double_backward
from mmfast.ops.head.folds import STATS, Folds, FoldSpec, M, Tile
from mmfast.ops.head.tiles import TILE_BUDGET, outcome
from mmfast.ops.launch import custom_op
from mmfast.ops.logprob import check_logit_options, folds_for
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
    """Log-probabilities fp32 [U] of `targets` int64 [U] under softmax(logits [U,V]); options as in linear_logprob.

    inplace_backward: the gradient overwrites `logits`, which saves [U,V]; nothing else may read them afterwards, and a
    second backward pass through them raises.
    """
    check(OP, "logits", logits, FLOATS, ("U", "V"))
    if logits.shape[1] == 0:
        raise ValueError(f"{OP}: logits has no columns, shape {list(logits.shape)}")
    check(OP, "targets", targets, INDEX, (logits.shape[0],), logits.device)
    check_logit_options(OP, softcap, temperature, return_entropy, entropy_grad)
    if inplace_backward and logits.requires_grad and logits.is_leaf:
        raise ValueError(f"{OP}: inplace_backward=True would overwrite logits, a leaf whose value is a parameter's")
    if inplace_backward and any(s == 0 and n > 1 for s, n in zip(logits.stride(), logits.shape, strict=True)):
        raise ValueError(
            f"{OP}: inplace_backward=True, but the rows or columns of logits share memory (expand): clone it"
        )
    outputs = _selective_logprob(
        logits, targets, softcap, temperature, return_entropy, entropy_grad, return_logsumsq, return_mean_logit,
        inplace_backward, backend or "",
    )  # fmt: skip
    wanted = [True, return_entropy, return_logsumsq, return_mean_logit, return_top1]
    result = tuple(t for t, want in zip(outputs[:5], wanted, strict=True) if want)
    return result if len(result) > 1 else result[0]


def _row_blocks(logits: Tensor, folds: Folds) -> tuple[list[tuple[int, int]], Tensor | None]:
    """(row ranges, a buffer for the widest): most folds take tiles of the accumulator's dtype and may overwrite them,
    so a tile is a copy. Others read the logits where they are: one range, no buffer."""
    users, vocab = logits.shape
    if folds.low_precision_tiles and logits.stride(1) == 1:
        return [(0, users)], None
    budget = TILE_BUDGET.get(logits.device.type, TILE_BUDGET["cuda"])
    rows = max(1, min(users, budget // (4 * vocab)))
    ranges = [(start, min(start + rows, users)) for start in range(0, users, rows)]
    return ranges, logits.new_empty(rows, vocab, dtype=accumulator(logits.dtype))


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@custom_op("mmfast::selective_logprob")
def _selective_logprob(
    logits: Tensor, targets: Tensor, softcap: float | None, temperature: float, entropy: bool, entropy_grad: bool,
    squares: bool, total: bool, inplace: bool, backend: str,
) -> Outputs:  # fmt: skip
    """logp, entropy, logsumsq, mean_logit, top1; lse, 1 - p_y, slope for the backward pass."""
    check_range(OP, "targets", targets, 0, logits.shape[1])
    users, vocab = logits.shape
    spec, folds = FoldSpec(softcap, temperature, entropy, squares, total), folds_for(OP, logits, backend)
    stats = logits.new_zeros(STATS, users, dtype=accumulator(logits.dtype))
    stats[M] = -torch.inf
    targets = targets.contiguous()
    blocks, buffer = _row_blocks(logits, folds)
    for start, stop in blocks:
        tile = logits[start:stop] if buffer is None else buffer[: stop - start].copy_(logits[start:stop])
        part = stats[:, start:stop].contiguous()
        folds.forward(Tile(tile, None, targets[start:stop], 0), part, spec, None, None)
        stats[:, start:stop] = part
    out = outcome(stats, vocab, spec)
    return out.logp, out.entropy, out.logsumsq, out.mean_logit, out.top1, out.lse, out.rest, out.slope


@_selective_logprob.register_fake
def _(logits: Tensor, targets: Tensor, *options: Any) -> Outputs:
    _, _, entropy, _, squares, total, _, _ = options
    n = logits.shape[0]
    sizes = (n, n if entropy else 0, n if squares else 0, n if total else 0)
    wide = [logits.new_empty(size, dtype=accumulator(logits.dtype)) for size in (*sizes, n, n, n)]
    return (*wide[:4], logits.new_empty(n, dtype=torch.bool), *wide[4:])  # type: ignore[return-value]


def _write_gradient(
    c: Tensor | None, h: Tensor | None, logits: Tensor, targets: Tensor, saved: list[Tensor],
    softcap: float | None, temperature: float, backend: str, out: Tensor,
) -> None:  # fmt: skip
    logp, entropy, lse, rest, slope = saved
    c = torch.zeros_like(logp) if c is None else c
    a, d = -c, c * rest * slope
    b = None if h is None else -h / temperature
    if h is not None:
        p = logp.exp()
        a = a - h * entropy
        d = d - h * slope * torch.where(p > 0, p * (logp + entropy), 0.0)
    a = a / temperature
    spec, folds = FoldSpec(softcap, temperature), folds_for(OP, logits, backend)
    targets = targets.contiguous()
    blocks, buffer = _row_blocks(logits, folds)
    for start, stop in blocks:
        cut = slice(start, stop)
        tile = logits[cut] if buffer is None else buffer[: stop - start].copy_(logits[cut])
        # the folds write the accumulator's dtype or bf16
        direct = out.dtype in (tile.dtype, torch.bfloat16) and out.stride(1) == 1
        to = out[cut] if direct else tile
        part = None if b is None else b[cut]
        folds.gradient(Tile(tile, None, targets[cut], 0), lse[cut], a[cut], part, d[cut], spec, to)
        if not direct:
            out[cut] = tile


@custom_op("mmfast::selective_logprob_backward")
def _selective_logprob_backward(
    c: Tensor | None, h: Tensor | None, logits: Tensor, targets: Tensor, saved: list[Tensor],
    softcap: float | None, temperature: float, backend: str,
) -> Tensor:  # fmt: skip
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _write_gradient(c, h, logits, targets, saved, softcap, temperature, backend, grad)
    return grad


@_selective_logprob_backward.register_fake
def _(c: Tensor | None, h: Tensor | None, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@custom_op("mmfast::selective_logprob_backward_", mutates_args=("logits",))
def _selective_logprob_backward_(
    c: Tensor | None, h: Tensor | None, logits: Tensor, targets: Tensor, saved: list[Tensor],
    softcap: float | None, temperature: float, backend: str,
) -> None:  # fmt: skip
    """The gradient, in the place of the logits."""
    _write_gradient(c, h, logits, targets, saved, softcap, temperature, backend, logits)


@_selective_logprob_backward_.register_fake
def _(*arguments: Any) -> None:
    return None


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    logits, targets, ctx.softcap, ctx.temperature, _, ctx.entropy_grad, _, _, ctx.inplace, ctx.backend = inputs
    logp, entropy, _, _, _, lse, rest, slope = output
    ctx.mark_non_differentiable(*output[(2 if ctx.entropy_grad else 1) :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, logp, entropy, lse, rest, slope)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_double_backward(OP)
    c, h = grads[0], grads[1] if ctx.entropy_grad else None
    if c is None and h is None:
        return (None,) * 10
    logits, targets, *saved = ctx.saved_tensors
    arguments = (c, h, logits, targets, saved, ctx.softcap, ctx.temperature, ctx.backend)
    if not ctx.inplace:
        return (_selective_logprob_backward(*arguments), *[None] * 9)
    _selective_logprob_backward_(*arguments)
    return (logits.detach(), *[None] * 9)


_selective_logprob.register_autograd(_backward, setup_context=_setup)
