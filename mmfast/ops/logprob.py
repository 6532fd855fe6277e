"""linear_logprob: log softmax(hidden W^T)[target] of each row, forward and backward, without the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast.ops.arguments import FLOATS, INDEX, check, check_range, check_same_dtype, refuse_double_backward
from mmfast.ops.dispatch import choose
from mmfast.ops.head import fused, tiles
from mmfast.ops.head.backends import FOLDS, folds_of
from mmfast.ops.head.backward import HeadGradients, by_recomputing, from_kept
from mmfast.ops.head.folds import Folds, FoldSpec
from mmfast.ops.head.tiles import Head
from mmfast.ops.launch import custom_op
from mmfast.ops.rows import accumulator, gather_rows

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
    """Log-probabilities [U] of `targets` under softmax(z), z = hidden[rows] @ weight.T (+ u @ B.T) (+ bias).

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
        return_entropy=return_entropy, entropy_grad=entropy_grad, tile_budget=tile_budget, keep_budget=keep_budget,
        backend=backend,
    )  # fmt: skip
    if backend == fused.NAME:
        others = {"lora": lora is not None, "return_entropy": return_entropy, "return_logsumsq": return_logsumsq}
        others |= {"return_mean_logit": return_mean_logit, "return_top1": return_top1}
        return fused.fused_logprob(call.x, call.weight, targets, bias, softcap, temperature, any(call.wants), others)
    outputs = run(call, return_logsumsq, return_mean_logit)
    wanted = [True, return_entropy, return_logsumsq, return_mean_logit, return_top1]
    result = tuple(t for t, want in zip(outputs[:5], wanted, strict=True) if want)
    return result if len(result) > 1 else result[0]


class Call(NamedTuple):
    """A checked call: rows gathered, autocast applied, budgets filled in."""

    x: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None
    u: Tensor | None
    b: Tensor | None
    softcap: float | None
    temperature: float
    entropy: bool
    entropy_grad: bool
    wants: list[bool]  # whether x, u, weight, B, bias need a gradient
    tile_budget: int
    keep_budget: int
    backend: str

    @property
    def input_grad(self) -> bool:
        return self.wants[0] or self.wants[1]

    @property
    def head_grad(self) -> bool:
        return any(self.wants[2:])

    @property
    def path(self) -> str:
        return tiles.choose_path(
            self.x, self.weight.shape[0], self.input_grad, self.head_grad, self.entropy_grad, self.keep_budget
        )


def prepare(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor | None,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor] | None,
    softcap: float | None,
    temperature: float,
    return_entropy: bool = False,
    entropy_grad: bool = False,
    tile_budget: int | None,
    keep_budget: int | None,
    backend: str | None,
) -> Call:
    """Check everything on the host; nothing is computed but casts and the gather of the rows."""
    check(op, "hidden", hidden, FLOATS, ("T", "D"))
    length, dim, device = *hidden.shape, hidden.device
    check(op, "weight", weight, FLOATS, ("V", dim), device)
    vocab = weight.shape[0]
    if vocab == 0 or dim == 0:
        raise ValueError(f"{op}: weight is empty, shape {list(weight.shape)}")
    check(op, "targets", targets, INDEX, (length if rows is None else "U",), device)
    if rows is not None:
        check(op, "rows", rows, INDEX, (targets.shape[0],), device)
    if bias is not None:
        check(op, "bias", bias, FLOATS, (vocab,), device)
    if lora is not None:
        check(op, "lora[0]", lora[0], FLOATS, (length, "r"), device)
        check(op, "lora[1]", lora[1], FLOATS, (vocab, lora[0].shape[1]), device)
    u, b = (None, None) if lora is None else lora
    check_logit_options(op, softcap, temperature, return_entropy, entropy_grad)
    if torch.is_autocast_enabled(device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        u, b = (None if t is None else t.to(dtype) for t in (u, b))
    for name, t in (("weight", weight), ("lora[0]", u), ("lora[1]", b)):
        if t is not None:
            check_same_dtype(op, name, t, "hidden", hidden)
    if rows is not None:
        check_range(op, "rows", rows, 0, hidden.shape[0])
        hidden = gather_rows(hidden, rows)  # gradients of a row's copies are added in order
        u = None if u is None else gather_rows(u, rows)
    if tile_budget is None:
        tile_budget = tiles.TILE_BUDGET.get(hidden.device.type, tiles.TILE_BUDGET["cuda"])
    if keep_budget is None:
        keep_budget = tiles.KEEP_BUDGET.get(hidden.device.type, tiles.KEEP_BUDGET["cuda"])
    grad = torch.is_grad_enabled()
    wants = [grad and t is not None and t.requires_grad for t in (hidden, u, weight, b, bias)]
    return Call(
        hidden, weight, targets, bias, u, b, softcap, temperature, return_entropy, entropy_grad, wants, tile_budget,
        keep_budget, backend or "",
    )  # fmt: skip


def check_logit_options(
    op: str, softcap: float | None, temperature: float, return_entropy: bool, entropy_grad: bool
) -> None:
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{op}: softcap must be above 0, or None for no cap; got {softcap}")
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0, got {temperature}")
    if entropy_grad and not return_entropy:
        raise ValueError(f"{op}: entropy_grad=True needs return_entropy=True")


def run(call: Call, squares: bool = False, total: bool = False) -> Outputs:
    return _linear_logprob(
        call.x, call.weight, call.targets, call.bias, call.u, call.b, call.softcap, call.temperature, call.entropy,
        call.entropy_grad, squares, total, call.input_grad, call.head_grad, call.tile_budget, call.keep_budget,
        call.backend,
    )  # fmt: skip


def folds_for(op: str, x: Tensor, backend: str) -> Folds:
    supported = {name: _unsupported(name, x) for name in FOLDS}
    return folds_of(choose(op, x.device, supported, backend or None))


def _unsupported(backend: str, x: Tensor) -> str:
    """Empty if `backend` takes this call, else why not. A pure predicate."""
    if backend in ("cuda", "triton") and x.dtype == torch.float64:
        return "float64 runs on backend 'torch' there"
    return ""


@custom_op("mmfast::scale_gradient")
def _scale_gradient(c: Tensor | None, g: Tensor, h: Tensor | None, twin: Tensor | None) -> Tensor:
    """c G + h twin, row by row: the whole backward pass of a frozen head."""
    dx = torch.zeros_like(g) if c is None else g * c[:, None]
    return (dx if h is None or twin is None else dx + twin * h[:, None]).to(g.dtype)


@_scale_gradient.register_fake
def _(c: Tensor | None, g: Tensor, h: Tensor | None, twin: Tensor | None) -> Tensor:
    return torch.empty_like(g)


# --- the custom ops. Outputs: logp, entropy, logsumsq, mean_logit, top1, then what the backward pass needs:
# lse, rest, slope, row_factor, kept, then G of x, G of u and their entropy twins. Those not made have no elements.
Outputs = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]


@custom_op("mmfast::linear_logprob")
def _linear_logprob(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    u: Tensor | None,
    b: Tensor | None,
    softcap: float | None,
    temperature: float,
    entropy: bool,
    entropy_grad: bool,
    squares: bool,
    total: bool,
    input_grad: bool,
    head_grad: bool,
    tile_budget: int,
    keep_budget: int,
    backend: str,
) -> Outputs:
    check_range(OP, "targets", targets, 0, weight.shape[0])
    spec = FoldSpec(softcap, temperature, entropy, squares, total)
    path = tiles.choose_path(x, weight.shape[0], input_grad, head_grad, entropy_grad, keep_budget)
    head = head_of(x, weight, bias, u, b, targets)
    with torch.autocast(x.device.type, enabled=False):
        out = tiles.forward(head, spec, folds_for(OP, x, backend), path, input_grad, entropy_grad, tile_budget)
    made = iter(out.gradients)
    with_u = u is not None and bool(out.gradients)
    with_twin = bool(out.gradients) and entropy_grad
    pieces = [next(made) if want else x.new_empty(0) for want in _pieces(bool(out.gradients), with_u, with_twin)]
    return (
        out.logp, out.entropy, out.logsumsq, out.mean_logit, out.top1, out.lse, out.rest, out.slope, out.row_factor,
        out.kept, *pieces,
    )  # type: ignore[return-value]  # fmt: skip


def _pieces(g: bool, u: bool, twin: bool) -> tuple[bool, bool, bool, bool]:
    """Which of G of x, G of u, twin of x, twin of u exist."""
    return g, u, twin, u and twin


def head_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor | None, b: Tensor | None, targets: Tensor
) -> Head:
    bias, u, b = (None if t is None else t.contiguous() for t in (bias, u, b))  # kernels take addresses
    return Head(x.contiguous(), weight.contiguous(), bias, u, b, targets.contiguous())


@_linear_logprob.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, u: Tensor | None, b: Tensor | None, *options: Any
) -> Outputs:  # fmt: skip
    _, _, entropy, entropy_grad, squares, total, input_grad, head_grad, _, keep_budget, _ = options
    n, vocab = x.shape[0], weight.shape[0]
    path = tiles.choose_path(x, vocab, input_grad, head_grad, entropy_grad, keep_budget)
    acc = accumulator(x.dtype)
    store = tiles.compute_dtype(x.dtype, x.device)

    def wide(want: bool) -> Tensor:
        return x.new_empty(n if want else 0, dtype=acc)

    kept = x.new_empty(n, vocab, dtype=store) if path == "kept" else x.new_empty(0, dtype=acc)
    with_g = input_grad and path in ("direct", "kept")
    wants = _pieces(with_g, with_g and u is not None, with_g and entropy_grad)
    inputs = (x, u, x, u)
    pieces = [
        x.new_empty(n, t.shape[1]) if want and t is not None else x.new_empty(0)
        for want, t in zip(wants, inputs, strict=True)
    ]
    return (
        wide(True), wide(entropy), wide(squares), wide(total), x.new_empty(n, dtype=torch.bool), wide(True), wide(True),
        wide(True), wide(path == "kept"), kept, *pieces,
    )  # type: ignore[return-value]  # fmt: skip


@custom_op("mmfast::linear_logprob_backward")
def _linear_logprob_backward(
    c: Tensor | None,
    h: Tensor | None,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    u: Tensor | None,
    b: Tensor | None,
    saved: list[Tensor],
    softcap: float | None,
    temperature: float,
    path: str,
    wants: list[bool],
    tile_budget: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, u, weight, B, bias as `wants` says. c = dL/dlogp, h = dL/dentropy; None is zero."""
    logp, entropy, lse, rest, slope, row_factor, kept = saved
    if c is None:
        c = torch.zeros_like(logp)
    head = head_of(x, weight, bias, u, b, targets)
    spec = FoldSpec(softcap, temperature)
    folds = folds_for(OP, x, backend)
    inputs: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):
        into = HeadGradients.make(head, (wants[2], wants[3], wants[4]))
        if path == "recompute":
            a, d = -c, c * rest * slope
            if h is not None:
                p = logp.exp()
                a = a - h * entropy
                d = d - h * slope * torch.where(p > 0, p * (logp + entropy), 0.0)
            slopes = None if h is None else -h / temperature
            inputs = by_recomputing(
                head, spec, lse, a / temperature, slopes, d, into, wants[0] or wants[1], tile_budget, folds
            )
        else:
            from_kept(head, kept, -c * row_factor, into, tile_budget, folds)
    dx, du = (*inputs, None, None)[:2]
    dbias = into.bias.to(bias.dtype) if into.bias is not None and bias is not None else None
    ordered = (dx, du, into.weight, into.b, dbias)
    return tuple(  # type: ignore[return-value]
        g if want and g is not None else x.new_empty(0) for g, want in zip(ordered, wants, strict=True)
    )


@_linear_logprob_backward.register_fake
def _(c: Tensor | None, h: Tensor | None, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weight, _, bias, u, b, _, _, _, _, wants, _, _ = others
    return tuple(  # type: ignore[return-value]
        t.new_empty(t.shape) if want and t is not None else x.new_empty(0)
        for t, want in zip((x, u, weight, b, bias), wants, strict=True)
    )


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    x, weight, targets, bias, u, b, softcap, temperature, _, entropy_grad = inputs[:10]
    input_grad, head_grad, tile_budget, keep_budget, backend = inputs[12:]
    ctx.path = tiles.choose_path(x, weight.shape[0], input_grad, head_grad, entropy_grad, keep_budget)
    ctx.entropy_grad, ctx.backend, ctx.tile_budget = entropy_grad, backend, tile_budget
    ctx.softcap, ctx.temperature = softcap, temperature
    logp, h, _, _, _, lse, rest, slope, row_factor, kept, *gradients = output
    ctx.mark_non_differentiable(*output[(2 if entropy_grad else 1) :])
    ctx.set_materialize_grads(False)
    if ctx.path == "direct":  # G stands in for x, the weight and everything else
        ctx.save_for_backward(*gradients)
    else:
        ctx.save_for_backward(
            *gradients, x, weight, targets, bias, u, b, logp, h, lse, rest, slope, row_factor, kept
        )  # fmt: skip


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_double_backward(OP)
    g_x, g_u, twin_x, twin_u, *others = ctx.saved_tensors
    c, h = grads[0], grads[1] if ctx.entropy_grad else None
    result: list[Tensor | None] = [None] * 17
    if c is None and h is None:
        return tuple(result)
    needs = ctx.needs_input_grad
    positions = (0, 4, 1, 5, 3)  # of x, u, weight, B, bias among the op's arguments
    wants = [needs[i] for i in positions]
    if ctx.path in ("direct", "kept"):
        for i, g, twin in ((0, g_x, twin_x), (4, g_u, twin_u)):
            if needs[i]:
                result[i] = _scale_gradient(c, g, h, twin if ctx.entropy_grad else None)
        wants[0] = wants[1] = False
    if any(wants):
        x, weight, targets, bias, u, b, *saved = others
        made = _linear_logprob_backward(
            c, h, x, weight, targets, bias, u, b, saved, ctx.softcap, ctx.temperature, ctx.path, wants,
            ctx.tile_budget, ctx.backend,
        )  # fmt: skip
        for i, grad, want in zip(positions, made, wants, strict=True):
            if want:
                result[i] = grad
    return tuple(result)


_linear_logprob.register_autograd(_backward, setup_context=_setup)
