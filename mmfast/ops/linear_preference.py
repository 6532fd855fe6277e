"""linear_preference_loss: the head and the preference loss in one, at bounded memory with a trained head too.

With a frozen head, or while P - Y of all rows fits keep_budget, this is linear_logprob followed by preference_loss: 2
or 3 GEMM passes. Beyond that linear_logprob would have to recompute the logits (4 passes), since the upstream gradient
is not known before the backward pass. Here it is: dL/dlogp of a row depends only on the pairs its response stands in.
So rows go through in chunks that hold whole connected components of the pair graph; each chunk makes its log-probs, its
c = dL/dlogp in closed form, and its part of every gradient at once, in 3 passes; the backward pass multiplies by
dL/dloss. A component that alone exceeds the budget makes its logits twice (4 passes).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import logprob
from mmfast.ops.arguments import INDEX, check, check_offsets, check_range, refuse_double_backward
from mmfast.ops.head import tiles
from mmfast.ops.head.backward import HeadGradients, by_recomputing, from_kept
from mmfast.ops.head.folds import Folds, FoldSpec
from mmfast.ops.head.tiles import Head
from mmfast.ops.kinds import SORTING
from mmfast.ops.launch import custom_op, refuse_capture
from mmfast.ops.preference import PreferenceOutput, preference_loss, preference_raw, prepare
from mmfast.ops.preference_math import PreferenceSpec
from mmfast.ops.rows import accumulator

OP = "linear_preference_loss"


def linear_preference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_logps: Tensor | None,
    responses: Tensor,
    pairs: Tensor,
    *,
    rows: Tensor | None = None,
    index: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    tile_budget: int | None = None,
    keep_budget: int | None = None,
    components: Tensor | None = None,
    backend: str | None = None,
    **objective: Any,
) -> PreferenceOutput:
    """linear_logprob and preference_loss in one; arguments as there (`objective`: loss, beta, pair_weights, ...).

    components: pair_components(...) of these arguments, made where they were on the host; without it a chunked call on
    a GPU waits for the device once to read them.
    """
    head_options: dict[str, Any] = {
        "rows": rows, "bias": bias, "lora": lora, "softcap": softcap, "temperature": temperature,
        "tile_budget": tile_budget, "keep_budget": keep_budget, "backend": backend,
    }  # fmt: skip
    call = logprob.prepare(OP, hidden, weight, targets, **head_options)
    chunked = call.path == "recompute" and objective.get("loss", "sigmoid") not in SORTING
    if not chunked:
        logps = logprob.run(call)[0]
        return preference_loss(
            logps, ref_logps, responses, pairs, index=index, weights=weights, backend=backend, **objective
        )
    refuse_capture(OP, call.x, "its rows go through in chunks planned on the host (let keep_budget hold all rows)")
    like = call.x.new_empty(targets.shape[0], dtype=accumulator(call.x.dtype))
    tensors, spec, loss_backend = prepare(
        like, ref_logps, responses, pairs, index=index, weights=weights, backend=backend, **objective
    )  # fmt: skip
    users = targets.shape[0]
    if components is None:
        check_offsets(OP, "responses", responses, users if index is None else index.shape[0])
        check_range(OP, "pairs", pairs, 0, responses.shape[0] - 1)
        if index is not None:
            check_range(OP, "index", index, 0, users)
        components = pair_components(responses, pairs, index, users)
    check(OP, "components", components, INDEX, (users,))
    if components.device.type != "cpu":
        raise ValueError(f"{OP}: components must be on the host, it is on {components.device}")
    limit = call.keep_budget // (weight.shape[0] * tiles.compute_dtype(call.x.dtype, call.x.device).itemsize)
    order, bounds = chunks(components, limit)
    total, metrics, *_ = _linear_preference(
        call.x, call.weight, targets, bias, call.u, call.b, *tensors,
        softcap, temperature, spec.kind, spec.divergence, spec.average, spec.sft_average,
        list(spec[4:]), order.to(call.x.device, non_blocking=True), bounds, call.wants, call.tile_budget,
        call.keep_budget, backend or "", loss_backend,
    )  # fmt: skip
    return PreferenceOutput(total, *metrics.unbind(0))


def pair_components(responses: Tensor, pairs: Tensor, index: Tensor | None, users: int) -> Tensor:
    """int64 [users] on the host: a number for each scored row, equal for rows whose gradients depend on one another.

    Entries are joined by pairs, and by rows they share. Rows in no pair have component 0 ... users - 1 like any other.
    """
    offsets = responses.tolist()
    scored = list(range(users)) if index is None else index.tolist()
    parent = list(range(users + len(offsets) - 1))  # rows, then entries

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for e in range(len(offsets) - 1):
        for u in scored[offsets[e] : offsets[e + 1]]:
            parent[root(u)] = root(users + e)
    for chosen, rejected in pairs.tolist():
        parent[root(users + chosen)] = root(users + rejected)
    names: dict[int, int] = {}
    return torch.tensor([names.setdefault(root(u), len(names)) for u in range(users)], dtype=torch.int64)


def chunks(components: Tensor, limit: int) -> tuple[Tensor, list[int]]:
    """(order [U], bounds): rows order[bounds[i]:bounds[i+1]] are chunk i. Whole components, in order, at most `limit`
    rows a chunk unless one component alone is larger."""
    order = torch.argsort(components, stable=True)
    bounds, size = [0], 0
    for count in torch.bincount(components).tolist():
        if size and size + count > limit:
            bounds.append(bounds[-1] + size)
            size = 0
        size += count
    return order, [*bounds, bounds[-1] + size]


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@custom_op("mmfast::linear_preference")
def _linear_preference(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, u: Tensor | None, b: Tensor | None,
    index: Tensor | None, weights: Tensor | None, ref_logps: Tensor | None, responses: Tensor, pairs: Tensor,
    pair_weights: Tensor | None, delta: Tensor | None, softcap: float | None, temperature: float, kind: int,
    divergence: int, average: bool, sft_average: bool, numbers: list[float], order: Tensor, bounds: list[int],
    wants: list[bool], tile_budget: int, keep_budget: int, backend: str, loss_backend: str,
) -> Outputs:  # fmt: skip
    """loss, metrics; d loss / d x, u, weight, B, bias as `wants` says."""
    check_range(OP, "targets", targets, 0, weight.shape[0])
    spec = FoldSpec(softcap, temperature)
    objective = PreferenceSpec(kind, divergence, average, sft_average, *numbers)
    folds = logprob.folds_for(OP, x, backend)
    head = logprob.head_of(x, weight, bias, u, b, targets)
    acc = accumulator(x.dtype)
    logps = x.new_zeros(x.shape[0], dtype=acc)

    def objective_at(values: Tensor, want_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return preference_raw(
            values, index, weights, ref_logps, responses, pairs, pair_weights, delta, objective, want_grad, loss_backend
        )

    into = HeadGradients.make(head, (wants[2], wants[3], wants[4]), wide=len(bounds) > 2)
    dx = x.new_zeros(x.shape) if wants[0] else x.new_empty(0)
    du = u.new_zeros(u.shape) if wants[1] and u is not None else x.new_empty(0)
    with torch.autocast(x.device.type, enabled=False):
        for start, stop in itertools.pairwise(bounds):
            chosen = order[start:stop]
            part = head.take(chosen)
            # a chunk's gradient reads its own log-probs only, so those still to come may be anything finite
            grads = _chunk(
                part, spec, folds, logps, chosen, objective_at, into, wants[0] or wants[1], tile_budget, keep_budget
            )
            for out, grad, want in zip((dx, du), grads, wants, strict=False):
                if want:
                    out[chosen] = grad.to(out.dtype)
        total, metrics, _ = objective_at(logps, want_grad=False)

    def narrow(grad: Tensor | None, like: Tensor | None) -> Tensor:
        return x.new_empty(0) if grad is None or like is None else grad.to(like.dtype)

    return total, metrics, dx, du, narrow(into.weight, weight), narrow(into.b, b), narrow(into.bias, bias)


def _chunk(
    part: Head, spec: FoldSpec, folds: Folds, logps: Tensor, chosen: Tensor, objective_at: Any, into: HeadGradients,
    input_grad: bool, tile_budget: int, keep_budget: int,
) -> list[Tensor]:  # fmt: skip
    """One chunk, forward and backward: its log-probs go into `logps`, its head gradients into `into`; returns the
    gradients of its inputs."""
    path = tiles.choose_path(part.x, part.weight.shape[0], input_grad, True, False, keep_budget)
    out = tiles.forward(part, spec, folds, path, input_grad, False, tile_budget)
    logps[chosen] = out.logp
    c = objective_at(logps)[2][chosen]
    if path == "kept":
        from_kept(part, out.kept, -c * out.row_factor, into, tile_budget, folds)
        return [g * c[:, None] for g in out.gradients]
    d = c * out.rest * out.slope
    return by_recomputing(
        part, spec, out.lse, -c / spec.temperature, None, d, into, input_grad, tile_budget, folds
    )  # fmt: skip


@_linear_preference.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, u: Tensor | None, b: Tensor | None, *others: Any
) -> Outputs:
    pairs, wants = others[4], others[-5]
    acc = accumulator(x.dtype)
    grads = [
        t.new_empty(t.shape) if want and t is not None else x.new_empty(0)
        for t, want in zip((x, u, weight, b, bias), wants, strict=True)
    ]
    return (x.new_empty((), dtype=acc), x.new_empty((6, pairs.shape[0]), dtype=acc), *grads)  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    ctx.wants = inputs[22]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])


def _backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    refuse_double_backward(OP)
    result: list[Tensor | None] = [None] * 27
    for i, grad, want in zip((0, 4, 1, 5, 3), ctx.saved_tensors, ctx.wants, strict=True):
        if want:
            result[i] = grad * d_loss.to(grad.dtype)
    return tuple(result)


_linear_preference.register_autograd(_backward, setup_context=_setup)
