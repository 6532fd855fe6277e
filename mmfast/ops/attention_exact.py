"""Tree attention run by run, the exact path: in C++ ("cpu", csrc/cpu/attention.isa.cpp), or as a loop anywhere.

On CPU each run of the loop is one call of torch's blocked CPU kernel; elsewhere the scores of a run are written out.
All keep the log-sum-exp for the backward pass, so nothing is computed twice but the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .arguments import refuse_double_backward
from .dispatch import native
from .launch import LeanOp
from .rows import accumulator, segment_backend, segment_sum

_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def dense_width(x: Tensor) -> Tensor:
    """torch's CPU kernel takes any strides but the last, which it believes to be 1. k and v are gathered: dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def run_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor | None:
    """The mask is true where query i may see key j: bottom-right causal (last sees last), within the window."""
    if queries == 1 and window <= 0:
        return None
    i = torch.arange(queries, device=device)[:, None] + (keys - queries)
    j = torch.arange(keys, device=device)[None, :]
    seen = j <= i
    return seen & (j > i - window) if window > 0 else seen


def _is_blocked(device: torch.device, scale: float) -> bool:
    """torch's CPU kernel multiplies its mask of -inf by the scale."""
    return device.type == "cpu" and scale > 0


def _blocked_mask(q: Tensor, k: Tensor, window: int) -> tuple[bool, Tensor | None]:
    """Says to the blocked CPU kernel whether torch's own causal mask is the run's, else gives the mask as a bias."""
    queries, keys = q.shape[1], k.shape[1]
    if window <= 0 and queries == keys:
        return True, None
    mask = run_mask(queries, keys, window, q.device)
    if mask is None:
        return False, None
    return False, torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)


def _forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """One run, q[Hq, lq, Dh], k and v[Hkv, lk, Dh], gives out[Hq, lq, Dh] and the log-sum-exp[Hq, lq]."""
    if _is_blocked(q.device, scale):
        causal, bias = _blocked_mask(q, k, window)
        out, lse = _flash_cpu(q[None], k[None], v[None], 0.0, causal, attn_mask=bias, scale=scale)
        return out[0], lse[0]
    scores, values = _scores(q, k, scale, window), v.to(accumulator(q.dtype))
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse[..., None])
    out = torch.matmul(weights.unflatten(0, (k.shape[0], -1)), values[:, None])
    return out.flatten(0, 1).to(q.dtype), lse


def _scores(q: Tensor, k: Tensor, scale: float, window: int) -> Tensor:
    acc = accumulator(q.dtype)
    grouped = q.to(acc).unflatten(0, (k.shape[0], -1)) * scale
    scores = torch.matmul(grouped, k.to(acc)[:, None].transpose(-1, -2)).flatten(0, 1)
    mask = run_mask(q.shape[1], k.shape[1], window, q.device)
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if _is_blocked(q.device, scale):
        causal, bias = _blocked_mask(q, k, window)
        batch = (x[None] for x in (grad, q, k, v, out, lse.contiguous()))
        d_q, d_k, d_v = _flash_cpu_backward(*batch, 0.0, causal, attn_mask=bias, scale=scale)
        return d_q[0], d_k[0], d_v[0]
    acc, heads = accumulator(q.dtype), k.shape[0]
    weights = torch.exp(_scores(q, k, scale, window) - lse[..., None]).unflatten(0, (heads, -1))
    grad, out = grad.to(acc), out.to(acc)
    grouped = grad.unflatten(0, (heads, -1))
    d_v = torch.matmul(weights.transpose(-1, -2), grouped).sum(1)
    d_weights = torch.matmul(grouped, v.to(acc)[:, None].transpose(-1, -2))
    d_scores = weights * (d_weights - (grad * out).sum(-1).unflatten(0, (heads, -1))[..., None]) * scale
    d_q = torch.matmul(d_scores, k.to(acc)[:, None]).flatten(0, 1)
    d_k = torch.matmul(d_scores.transpose(-1, -2), q.to(acc).unflatten(0, (heads, -1))).sum(1)
    return d_q.to(q.dtype), d_k.to(q.dtype), d_v.to(q.dtype)


def _runs(q_offsets: Tensor, k_offsets: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the queries and the places in k_index of each run that has queries; none on the meta device."""
    if q_offsets.is_meta:
        return iter(())
    ends = zip(pairwise(q_offsets.tolist()), pairwise(k_offsets.tolist()), strict=True)
    return ((slice(*queries), slice(*keys)) for queries, keys in ends if queries[0] < queries[1])


def _native(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_index: Tensor, k_offsets: Tensor, scale: float, window: int
) -> tuple[Any, ...]:
    """TreeAttention of csrc/ops.h."""
    indices = [x.to(torch.int64).contiguous() for x in (q_offsets, k_offsets, k_index)]
    sizes = (q_offsets.shape[0] - 1, q.shape[1], k.shape[1], q.shape[2])
    strided = [part for x in map(dense_width, (q, k, v)) for part in (x, x.stride(0), x.stride(1))]
    return *indices, *sizes, scale, window, torch.get_num_threads(), *strided


def _run(function: str, *arguments: Any) -> None:
    if not getattr(native(), function)(*arguments):
        raise MemoryError("tree_attention: out of memory for its scratch")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_index: Tensor, k_offsets: Tensor,
    copies: Tensor, copy_offsets: Tensor, scale: float, window: int, backend: str,
) -> list[Tensor]:  # fmt: skip
    """Returns out[T, Hq, Dh] and each query's log-sum-exp[T, Hq], which "cpu" takes to the base 2."""
    out, lse = _attend_fake(q)
    if backend == "cpu":
        _run("cpu_tree_forward", *_native(q, k, v, q_offsets, k_index, k_offsets, scale, window), out, lse)
        return [out, lse]
    q = dense_width(q)
    for mine, keys in _runs(q_offsets, k_offsets):
        rows = k_index[keys]
        run = (q[mine], k.index_select(0, rows), v.index_select(0, rows))
        run_out, run_lse = _forward(*(x.transpose(0, 1) for x in run), scale=scale, window=window)
        out[mine], lse[mine] = run_out.transpose(0, 1), run_lse.transpose(0, 1)
    return [out, lse]


def _attend_fake(q: Tensor, *others: Any) -> list[Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[1]), dtype=accumulator(q.dtype))
    return [torch.empty_like(q, memory_format=torch.contiguous_format), lse]


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, q_offsets: Tensor, k_index: Tensor,
    k_offsets: Tensor, scale: float, window: int, backend: str,
) -> list[Tensor]:  # fmt: skip
    """Returns d q[T, Hq, Dh], and the gradients of the gathered k and v[K, Hkv, Dh]."""
    d_q, d_k, d_v = made = _backward_fake(grad, q, k, v, out, lse, q_offsets, k_index)
    grad = dense_width(grad)
    if backend == "cpu":
        attention = _native(q, k, v, q_offsets, k_index, k_offsets, scale, window)
        _run("cpu_tree_backward", *attention, grad, grad.stride(0), grad.stride(1), out, lse, *made)
        return made
    d_k.zero_(), d_v.zero_()  # keys of a run without queries
    q = dense_width(q)
    for mine, keys in _runs(q_offsets, k_offsets):
        rows = k_index[keys]
        run = (grad[mine], q[mine], k.index_select(0, rows), v.index_select(0, rows), out[mine], lse[mine])
        gradients = _gradients(*(x.transpose(0, 1) for x in run), scale=scale, window=window)
        d_q[mine], d_k[keys], d_v[keys] = (g.transpose(0, 1) for g in gradients)
    return made


def _backward_fake(grad: Tensor, q: Tensor, k: Tensor, *others: Any) -> list[Tensor]:
    k_index = others[4]
    d_k = k.new_empty((k_index.shape[0], *k.shape[1:]))
    return [torch.empty_like(q, memory_format=torch.contiguous_format), d_k, torch.empty_like(d_k)]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        made = exact_attention.below(*arguments)
        ctx.settings = arguments[8:]  # scale, window, backend
        ctx.save_for_backward(*arguments[:3], *made, *arguments[3:8])
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("tree_attention")
        *saved, copies, copy_offsets = ctx.saved_tensors
        d_q, d_k, d_v = _exact_backward(grad, *saved, *ctx.settings)
        backend = segment_backend(d_k)
        d_k, d_v = (segment_sum(x, copies, copy_offsets, backend) for x in (d_k, d_v))
        return d_q, d_k, d_v, *[None] * 8


exact_attention = LeanOp("tree_attention_exact", _attend, _attend_fake, _Gradient)
_exact_backward = LeanOp("tree_attention_exact_backward", _attend_backward, _backward_fake)
