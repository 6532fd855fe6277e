"""linear_logprob: log softmax(hidden W^T)[target] of each row, forward and backward, without the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops.arguments import check_range, refuse_double_backward
from mmfast.ops.head import fused, tiles
from mmfast.ops.head.backends import folds_for
from mmfast.ops.head.backward import HeadGradients, by_recomputing, from_kept, slopes_of
from mmfast.ops.head.call import Call, prepare
from mmfast.ops.head.outcome import Outcome, Saved
from mmfast.ops.head.spec import HeadSpec, compute_dtype, padded
from mmfast.ops.head.tiles import Head
from mmfast.ops.launch import custom_op
from mmfast.ops.rows import accumulator

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
    call = prepare(
        OP, hidden, weight, targets, rows=rows, bias=bias, lora=lora, softcap=softcap, temperature=temperature,
        return_entropy=return_entropy, entropy_grad=entropy_grad, return_logsumsq=return_logsumsq,
        return_mean_logit=return_mean_logit, tile_budget=tile_budget, keep_budget=keep_budget, backend=backend,
    )  # fmt: skip
    returned = {"return_entropy": return_entropy, "return_logsumsq": return_logsumsq}
    returned |= {"return_mean_logit": return_mean_logit, "return_top1": return_top1}
    if backend == fused.NAME:
        return fused.fused_logprob(call, {"lora": lora is not None, **returned})
    return select(run(call), returned)


def select(outputs: tuple[Tensor, ...], returned: dict[str, bool]) -> Any:
    """Returns the log-probs, in a tuple with those other outputs that are `returned` if any is."""
    others = [t for t, want in zip(outputs[1:5], returned.values(), strict=True) if want]
    return (outputs[0], *others) if others else outputs[0]


def run(call: Call) -> tuple[Tensor, ...]:
    return _linear_logprob(*call.head, call.spec.flat(), call.backend)


@custom_op("mmfast::scale_gradient")
def _scale_gradient(c: Tensor | None, g: Tensor, h: Tensor | None, entropy_g: Tensor | None) -> Tensor:
    """Makes c G + h d entropy/dx, row by row: the whole backward pass of a frozen head."""
    dx = torch.zeros_like(g) if c is None else g * c[:, None]
    return (dx if h is None or entropy_g is None else dx + entropy_g * h[:, None]).to(g.dtype)


@_scale_gradient.register_fake
def _(c: Tensor | None, g: Tensor, h: Tensor | None, entropy_g: Tensor | None) -> Tensor:
    return torch.empty_like(g)


# --- the custom ops. The first ten outputs are those of outcome.Outcome, in its order; then d logp/dx, d logp/du,
# d entropy/dx and d entropy/du. Those not made have no elements.
Outputs = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]


def _made(g: bool, u: Tensor | None, spec: HeadSpec) -> tuple[bool, bool, bool, bool]:
    """Says which of the last four outputs are made, if G is."""
    return g, g and u is not None, g and spec.entropy_grad, g and u is not None and spec.entropy_grad


@custom_op("mmfast::linear_logprob")
def _linear_logprob(
    x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None, bias: Tensor | None, targets: Tensor,
    options: list[float], backend: str,
) -> Outputs:  # fmt: skip
    check_range(OP, "targets", targets, 0, weight.shape[0])
    spec = HeadSpec.of(options)
    with torch.autocast(x.device.type, enabled=False):
        out = tiles.forward(Head(x, u, weight, b, bias, targets).dense(), spec, folds_for(OP, x, backend))
    gradients, made = iter(out.gradients), _made(bool(out.gradients), u, spec)
    return (*out[:10], *[next(gradients) if here else x.new_empty(0) for here in made])  # type: ignore[return-value]


@_linear_logprob.register_fake
def _(
    x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None, bias: Tensor | None, targets: Tensor,
    options: list[float], backend: str,
) -> Outputs:  # fmt: skip
    spec, acc, (n, vocab) = HeadSpec.of(options), accumulator(x.dtype), (x.shape[0], weight.shape[0])
    path = spec.path(x, vocab)
    kept = path == "kept"

    def numbers(here: bool) -> Tensor:
        return x.new_empty(n if here else 0, dtype=acc)

    gradients = [
        x.new_empty(n, t.shape[1]) if here and t is not None else x.new_empty(0)
        for here, t in zip(_made(spec.input_grad and path != "recompute", u, spec), (x, u, x, u), strict=True)
    ]
    return (
        numbers(True), numbers(spec.entropy), numbers(spec.squares), numbers(spec.total),
        x.new_empty(n, dtype=torch.bool), numbers(True), numbers(True), numbers(True), numbers(kept),
        x.new_empty(n, padded(vocab), dtype=compute_dtype(x))[:, :vocab] if kept else numbers(False), *gradients,
    )  # type: ignore[return-value]  # fmt: skip


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@custom_op("mmfast::linear_logprob_backward")
def _linear_logprob_backward(
    c: Tensor | None, h: Tensor | None, x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None,
    bias: Tensor | None, targets: Tensor, saved: list[Tensor], options: list[float], wants: list[bool], backend: str,
) -> Gradients:  # fmt: skip
    """Returns the gradients of x, u, weight, B, bias as `wants` says. c = dL/dlogp, h = dL/dentropy; None is zero."""
    *read, row_factor, kept = saved
    head = Head(x, u, weight, b, bias, targets).dense()
    spec = HeadSpec.of(options)
    folds = folds_for(OP, x, backend)
    inputs: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):
        gradients = HeadGradients.make(head, wants[2:])
        if spec.path(x, weight.shape[0]) == "recompute":
            slopes = slopes_of(c, h, Saved(*read), spec)
            spec = spec._replace(input_grad=any(wants[:2]))
            inputs = by_recomputing(head, read[2], slopes, gradients, spec, folds)
        else:
            c = torch.zeros_like(read[0]) if c is None else c
            from_kept(head, kept, -c * row_factor, gradients, spec, folds)
    empty = [x.new_empty(0) for _ in range(2 - len(inputs))]
    both = [g if want else x.new_empty(0) for g, want in zip([*inputs, *empty], wants[:2], strict=True)]
    return (*both, *gradients.results(head))  # type: ignore[return-value]


@_linear_logprob_backward.register_fake
def _(c: Tensor | None, h: Tensor | None, x: Tensor, *others: Any) -> Gradients:
    wants = others[-2]
    return tuple(  # type: ignore[return-value]
        t.new_empty(t.shape) if want and t is not None else x.new_empty(0)
        for t, want in zip((x, *others[:4]), wants, strict=True)
    )


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    *head, ctx.options, ctx.backend = inputs
    spec = HeadSpec.of(ctx.options)
    ctx.entropy_grad, ctx.path = spec.entropy_grad, spec.path(head[0], head[2].shape[0])
    out = Outcome(*output[:10])
    ctx.mark_non_differentiable(*output[(2 if ctx.entropy_grad else 1) :])
    ctx.set_materialize_grads(False)
    # On the path "direct" G stands in for x, the weight and everything else.
    others = () if ctx.path == "direct" else (*head, *out.saved(), out.row_factor, out.kept)
    ctx.save_for_backward(*output[10:], *others)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_double_backward(OP)
    g_x, g_u, entropy_x, entropy_u, *others = ctx.saved_tensors
    c, h = grads[0], grads[1] if ctx.entropy_grad else None
    result: list[Tensor | None] = [None] * 8
    if c is None and h is None:
        return tuple(result)
    wants = list(ctx.needs_input_grad[:5])
    if ctx.path in ("direct", "kept"):
        for i, g, entropy_g in ((0, g_x, entropy_x), (1, g_u, entropy_u)):
            if wants[i]:
                result[i] = _scale_gradient(c, g, h, entropy_g if ctx.entropy_grad else None)
        wants[0] = wants[1] = False
    if any(wants):
        head, saved = others[:6], others[6:]
        gradients = _linear_logprob_backward(c, h, *head, saved, ctx.options, wants, ctx.backend)
        for i, (grad, want) in enumerate(zip(gradients, wants, strict=True)):
            result[i] = grad if want else result[i]
    return tuple(result)


_linear_logprob.register_autograd(_backward, setup_context=_setup)
