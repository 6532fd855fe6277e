"""linear_logprob: log softmax(hidden W^T)[target] of each row, forward and backward, without the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops.arguments import check_range, refuse_double_backward
from mmfast.ops.head import fused, tiles
from mmfast.ops.head.backends import folds_for
from mmfast.ops.head.backward import HeadGradients, by_recomputing, from_kept
from mmfast.ops.head.call import logit_spec, prepare
from mmfast.ops.head.outcome import ENTROPY, LOGSUMSQ, MEAN_LOGIT, NUMBERS, TOP1, Kernels
from mmfast.ops.head.spec import HeadSpec, compute_dtype, padded
from mmfast.ops.head.tiles import Head
from mmfast.ops.launch import LeanOp, no_autocast
from mmfast.ops.rows import accumulator, invert, segment_backend, segment_sum

OP = "linear_logprob"


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
    entropy_grad: bool = False,
    return_logsumsq: bool = False,
    return_mean_logit: bool = False,
    return_top1: bool = False,
    tile_budget: int | None = None,
    keep_budget: int | None = None,
    backend: str | None = None,
) -> Any:
    """Returns log-probabilities [U] of `targets` under softmax(z), z = hidden[rows] @ weight.T (+ u @ B.T) (+ bias).

    hidden [T,D], weight [V,D], targets int64 [U], rows int64 [U] (None: U == T; an index may repeat).
    softcap: z -> softcap * tanh(z / softcap); then z -> z / temperature. lora = (u [T,r], B [V,r]): LoRA on the head,
    with u = scale * dropout(hidden) @ A.T made outside.
    The result is fp32 from fp32 accumulators (fp64 for fp64 inputs). With any return_* flag it is a tuple: logp, then
    those of entropy, log of the sum of squared probabilities, mean logit, top-1 hit that were asked for, in this order.
    Only logp, and with entropy_grad the entropy, carry gradients.
    tile_budget: bytes of the one fp32 tile of logits; keep_budget: bytes of probabilities that may be kept for the
    backward pass when the head is trained (docs/ops/linear_logprob.md). backend: "cuda", "triton", "cpu", "torch", or
    "triton-fused" where no gradient is needed (docs/kernels.md).
    """
    spec = logit_spec(OP, softcap, temperature, return_entropy, entropy_grad, return_logsumsq, return_mean_logit)
    u, b = (None, None) if lora is None else lora
    head = Head(hidden, u, weight, b, bias, targets)
    call = prepare(OP, head, rows, spec, tile_budget=tile_budget, keep_budget=keep_budget, backend=backend)
    if backend == fused.NAME:
        return fused.fused_logprob(call, return_top1)
    told, numbers, *_ = _linear_logprob(*call.head, rows, call.spec.flat(), call.backend)
    return select(told, numbers, spec, return_top1)


def select(told: Tensor, numbers: Tensor, spec: HeadSpec, top1: bool) -> Any:
    """Returns the log-probs, in a tuple with the other outputs that are asked for if any is."""
    wants = {ENTROPY: spec.entropy, LOGSUMSQ: spec.squares, MEAN_LOGIT: spec.total}
    others = [numbers[row] for row, want in wants.items() if want]
    if top1:
        others.append(numbers[TOP1] > 0)
    if spec.entropy_grad:
        told, others[0] = told.unbind()
    return (told, *others) if others else told


# --- the ops
def _forward(
    x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None, bias: Tensor | None, targets: Tensor,
    rows: Tensor | None, options: list[float], backend: str,
) -> list[Tensor]:  # fmt: skip
    """Returns outcome.Outcome as a list: told, numbers, kept if it is, then the gradients."""
    check_range(OP, "targets", targets, 0, weight.shape[0])
    with no_autocast(x):
        head = _gathered(Head(x, u, weight, b, bias, targets), rows).dense()
        out = tiles.forward(head, HeadSpec.of(options), folds_for(OP, x, backend))
    return [out.told, out.numbers, *([] if out.kept is None else [out.kept]), *out.gradients]


def _gathered(head: Head, rows: Tensor | None) -> Head:
    x, u = (t if t is None or rows is None else t.index_select(0, rows) for t in head[:2])
    return Head(x, u, *head[2:])  # type: ignore[arg-type]


def _forward_fake(
    x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None, bias: Tensor | None, targets: Tensor,
    rows: Tensor | None, options: list[float], backend: str,
) -> list[Tensor]:  # fmt: skip
    spec, acc, (count, vocab) = HeadSpec.of(options), accumulator(x.dtype), (targets.shape[0], weight.shape[0])
    inputs = [x.new_empty(count, t.shape[1]) for t in (x, u) if t is not None]
    path = spec.path(inputs[0], vocab)
    told = x.new_empty((2, count) if spec.entropy_grad else (count,), dtype=acc)
    kept = [x.new_empty(count, padded(vocab), dtype=compute_dtype(x))[:, :vocab]] if path == "kept" else []
    gradients = [torch.empty_like(t) for t in (*inputs, *(inputs if spec.entropy_grad else ()))]
    made = spec.input_grad and path != "recompute"
    return [told, x.new_empty(NUMBERS, count, dtype=acc), *kept, *(gradients if made else [])]


def _backward(
    grad: Tensor, head: list[Tensor | None], made: list[Tensor], rows: Tensor | None, length: int, options: list[float],
    wants: list[bool], backend: str,
) -> list[Tensor]:  # fmt: skip
    """Returns the gradients of x, u, weight, B and bias that `wants` asks for. grad = dL/dtold; made: what the forward
    pass made, but for told; head: the tensors of Head, or none on the path "direct", where G stands in for them; rows:
    those of x, which has `length` in all."""
    spec, kernels = HeadSpec.of(options), folds_for(OP, grad, backend)
    c, h = grad.unbind() if spec.entropy_grad else (grad, None)
    rows = None if rows is None else rows.contiguous()  # kernels take addresses
    inverse = invert(rows, length) if rows is not None and any(wants[:2]) else None
    with no_autocast(grad):
        if not head:
            return _scaled(kernels, c, h, made, wants, inverse)
        tensors = Head(*head).dense()  # type: ignore[arg-type]
        gradients = HeadGradients.make(tensors, wants[2:])
        if len(made) > 1:  # E is kept
            inputs = _scaled(kernels, c, h, made[2:], wants, inverse)
            from_kept(tensors, rows, made[1], c, made[0], gradients, spec, kernels)
        else:
            spec = spec._replace(input_grad=any(wants[:2]))
            both = by_recomputing(_gathered(tensors, rows), made[0], c, h, gradients, spec, kernels)
            inputs = [g for g, want in zip(both, wants, strict=False) if want]
            if inverse is not None:
                inputs = [segment_sum(g, *inverse, segment_backend(g)) for g in inputs]
    return inputs + gradients.made()


def _scaled(
    kernels: Kernels, c: Tensor, h: Tensor | None, made: list[Tensor], wants: list[bool],
    inverse: tuple[Tensor, Tensor] | None,
) -> list[Tensor]:  # fmt: skip
    """Makes c G + h d entropy/dx of each wanted input, row by row: the whole backward pass of a frozen head."""
    entropy_made = made[len(made) // 2 :] if h is not None else [None] * len(made)
    pairs = zip(made, entropy_made, wants[:2], strict=False)
    return [kernels.combine(g.dtype, c, g, b=h, q=q, inverse=inverse) for g, q, want in pairs if want]


def _backward_fake(
    grad: Tensor, head: list[Tensor | None], made: list[Tensor], rows: Tensor | None, length: int, options: list[float],
    wants: list[bool], backend: str,
) -> list[Tensor]:  # fmt: skip
    pairs = zip(enumerate(head or made), wants, strict=False)
    return [
        t.new_empty((length if i < 2 else t.shape[0], *t.shape[1:])) for (i, t), want in pairs if want and t is not None
    ]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *head, rows, ctx.options, ctx.backend = arguments
        made = _linear_logprob.below(*arguments)
        direct = not HeadSpec.of(ctx.options).head_grad
        ctx.held, ctx.length = 0 if direct else len(head), head[0].shape[0]
        ctx.save_for_backward(rows, *(made[2:] if direct else (*head, *made[1:])))
        ctx.mark_non_differentiable(*made[1:])
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_double_backward(OP)
        if grad is None:
            return (None,) * 9
        wants, (rows, *saved) = list(ctx.needs_input_grad[:5]), ctx.saved_tensors
        head, made = saved[: ctx.held], saved[ctx.held :]
        gradients = iter(_linear_logprob_backward(grad, head, made, rows, ctx.length, ctx.options, wants, ctx.backend))
        return (*(next(gradients) if want else None for want in wants), None, None, None, None)


_linear_logprob = LeanOp("linear_logprob", _forward, _forward_fake, _Gradient)
_linear_logprob_backward = LeanOp("linear_logprob_backward", _backward, _backward_fake)
