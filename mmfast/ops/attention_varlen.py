"""Tree attention by the flash kernels that torch brings ("varlen"), forward and backward one op each.

torch.nn.attention.varlen wraps the same two functions. By it and a gather each of keys and values, a layer takes three
autograd nodes, and a short pack waits for the host. Keys and values are gathered again for the backward pass, which
keeps rows of the stream alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .arguments import refuse_double_backward
from .launch import LeanOp
from .rows import segment_backend, segment_sum

WINDOW = "window_size_left"


def missing() -> str:
    """Returns "" if this torch has the kernels, else the reason why not."""
    forward = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if forward is None or WINDOW not in {a.name for a in forward.default._schema.arguments}:
        return f"torch {torch.__version__} has no _flash_attention_forward with a window"
    return "" if torch.backends.cuda.is_flash_attention_available() else "this torch was built without flash attention"


def aligned(x: Tensor) -> Tensor:
    """Flash kernels read heads 16 bytes at a time, and fault where one starts between; gathered keys start right.
    Compilers cannot ask where a tensor starts: what they make starts right, with dense heads."""
    word = 16 // x.element_size()
    if x.stride(-1) == 1 and (is_compiling() or not any(n % word for n in (x.storage_offset(), *x.stride()[:-1]))):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _sides(window: int) -> dict[str, int]:
    """The window as the kernels take it, who do not count the token itself; -1: no limit."""
    return {WINDOW: window - 1 if window else -1, "window_size_right": 0}


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_index: Tensor, k_offsets: Tensor, copies: Tensor,
    copy_offsets: Tensor, max_q: int, max_k: int, scale: float, window: int,
) -> list[Tensor]:  # fmt: skip
    """Returns out [T, Hq, Dh], its log-sum-exp, and the state of a dropout that is not."""
    k, v = k.index_select(0, k_index), v.index_select(0, k_index)
    return list(torch.ops.aten._flash_attention_forward(
        aligned(q), k, v, q_offsets, k_offsets, max_q, max_k, 0.0, not window, False, scale=scale, **_sides(window)
    )[:4])  # fmt: skip


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        made = tree_attention_varlen.below(*arguments)
        ctx.save_for_backward(*arguments[:8], *made)
        ctx.settings = arguments[8:]
        ctx.mark_non_differentiable(*made[1:])
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("tree_attention")
        if grad is None:
            return (None,) * 12
        q, k, v, q_offsets, k_index, k_offsets, copies, copy_offsets, out, lse, *dropout = ctx.saved_tensors
        max_q, max_k, scale, window = ctx.settings
        k, v = k.index_select(0, k_index), v.index_select(0, k_index)
        d_q, *both = torch.ops.aten._flash_attention_backward(
            aligned(grad), aligned(q), k, v, out, lse, q_offsets, k_offsets, max_q, max_k, 0.0, not window, *dropout,
            scale=scale, **_sides(window),
        )  # fmt: skip
        backend = segment_backend(both[0])
        return (d_q, *(segment_sum(x, copies, copy_offsets, backend) for x in both), *[None] * 9)


tree_attention_varlen = LeanOp("tree_attention_varlen", _forward, _forward, _Gradient)
