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
from mmfast.ops.head.backends import folds_for
from mmfast.ops.head.backward import HeadGradients, by_recomputing, from_kept
from mmfast.ops.head.call import prepare as prepare_head
from mmfast.ops.head.spec import HeadSpec, compute_dtype
from mmfast.ops.head.tiles import Head
from mmfast.ops.kinds import SORTING
from mmfast.ops.launch import custom_op, refuse_capture
from mmfast.ops.preference import PreferenceOutput, preference_loss, preference_raw, prepare
from mmfast.ops.preference_kernels import PreferenceTensors
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
    """Does linear_logprob and preference_loss in one; arguments as there (`objective`: loss, beta, pair_weights, ...).

    components: pair_components(...) of these arguments, made where they were on the host; without it a chunked call on
    a GPU waits for the device once to read them.
    """
    # The head alone says whether chunks are needed.
    call = prepare_head(
        OP, hidden, weight, targets, rows=rows, bias=bias, lora=lora, softcap=softcap, temperature=temperature,
        tile_budget=tile_budget, keep_budget=keep_budget, backend=backend,
    )  # fmt: skip
    scored: dict[str, Any] = {"index": index, "weights": weights, "backend": backend}
    x = call.head.x
    chunked = call.spec.path(x, weight.shape[0]) == "recompute" and objective.get("loss", "sigmoid") not in SORTING
    if not chunked:
        return preference_loss(logprob.run(call)[0], ref_logps, responses, pairs, **scored, **objective)
    # Check the loss's arguments against log-probs yet to be made, then plan the chunks on the host.
    refuse_capture(OP, x, "its rows go through in chunks planned on the host (let keep_budget hold all rows)")
    count = targets.shape[0]
    like = x.new_empty(count, dtype=accumulator(x.dtype))
    tensors, spec, loss_backend = prepare(like, ref_logps, responses, pairs, **scored, **objective)
    if components is None:
        check_offsets(OP, "responses", responses, count if index is None else index.shape[0])
        check_range(OP, "pairs", pairs, 0, responses.shape[0] - 1)
        if index is not None:
            check_range(OP, "index", index, 0, count)
        components = pair_components(responses, pairs, index, count)
    check(OP, "components", components, INDEX, (count,))
    if components.device.type != "cpu":
        raise ValueError(f"{OP}: components must be on the host, it is on {components.device}")
    order, bounds = chunks(components, call.spec.keep_budget // (weight.shape[0] * compute_dtype(x).itemsize))
    total, metrics, *_ = _linear_preference(
        *call.head, *tensors[1:8], order.to(x.device, non_blocking=True), bounds, call.spec.flat(), spec.flat(),
        call.wants, call.backend, loss_backend,
    )  # fmt: skip
    return PreferenceOutput(total, *metrics.unbind(0))


def pair_components(responses: Tensor, pairs: Tensor, index: Tensor | None, rows: int) -> Tensor:
    """Numbers each scored row, int64 [rows] on the host: equal for rows whose gradients depend on one another.

    Entries are joined by pairs, and by rows they share. Rows in no pair have component 0 ... rows - 1 like any other.
    """
    offsets = responses.tolist()
    scored = list(range(rows)) if index is None else index.tolist()
    parent = list(range(rows + len(offsets) - 1))  # rows, then entries

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for e in range(len(offsets) - 1):
        for u in scored[offsets[e] : offsets[e + 1]]:
            parent[root(u)] = root(rows + e)
    for chosen, rejected in pairs.tolist():
        parent[root(rows + chosen)] = root(rows + rejected)
    names: dict[int, int] = {}
    return torch.tensor([names.setdefault(root(u), len(names)) for u in range(rows)], dtype=torch.int64, device="cpu")


def chunks(components: Tensor, limit: int) -> tuple[Tensor, list[int]]:
    """Returns (order [U], bounds): rows order[bounds[i]:bounds[i+1]] are chunk i. Whole components, in order, at most
    `limit` rows a chunk unless one component alone is larger."""
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
    x: Tensor, u: Tensor | None, weight: Tensor, b: Tensor | None, bias: Tensor | None, targets: Tensor,
    index: Tensor | None, weights: Tensor | None, ref_logps: Tensor | None, responses: Tensor, pairs: Tensor,
    pair_weights: Tensor | None, delta: Tensor | None, order: Tensor, bounds: list[int], options: list[float],
    objective: list[float], wants: list[bool], backend: str, loss_backend: str,
) -> Outputs:  # fmt: skip
    """Returns loss and metrics, then d loss / d x, u, weight, B, bias as `wants` says."""
    check_range(OP, "targets", targets, 0, weight.shape[0])
    head, spec = Head(x, u, weight, b, bias, targets).dense(), HeadSpec.of(options)
    loss_spec = PreferenceSpec.of(objective)
    folds = folds_for(OP, x, backend)
    logps = x.new_zeros(x.shape[0], dtype=accumulator(x.dtype))
    tensors = PreferenceTensors(logps, index, weights, ref_logps, responses, pairs, pair_weights, delta)
    gradients = HeadGradients.make(head, wants[2:], add=len(bounds) > 2)
    inputs = [t.new_zeros(t.shape) if want and t is not None else x.new_empty(0)
              for t, want in zip((x, u), wants[:2], strict=True)]  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        for start, stop in itertools.pairwise(bounds):
            # The log-probs of a chunk's rows, then c = dL/dlogp, then this chunk's part of every gradient.
            rows = order[start:stop]
            part = head.cut(rows)
            out = tiles.forward(part, spec, folds)
            logps[rows] = out.told
            # (c reads no other chunk's log-probs: those still to come may be anything finite.)
            c = preference_raw(tensors, loss_spec, True, loss_backend)[2][rows]
            if out.kept is not None:
                from_kept(part, out.kept, c, out.numbers, gradients, spec, folds)
                grads = [folds.combine(g.dtype, c, g) for g in out.gradients]
            else:
                grads = by_recomputing(part, out.numbers, c, None, gradients, spec, folds)
            for result, grad, want in zip(inputs, grads, wants, strict=False):
                if want:
                    result[rows] = grad
        total, metrics, _ = preference_raw(tensors, loss_spec, False, loss_backend)
    return (total, metrics, *inputs, *gradients.results(head))  # type: ignore[return-value]


@_linear_preference.register_fake
def _(x: Tensor, *others: Any) -> Outputs:
    pairs, wants = others[9], others[-3]
    acc = accumulator(x.dtype)
    grads = [
        t.new_empty(t.shape) if want and t is not None else x.new_empty(0)
        for t, want in zip((x, *others[:4]), wants, strict=True)
    ]
    return (x.new_empty((), dtype=acc), x.new_empty((6, pairs.shape[0]), dtype=acc), *grads)  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    ctx.wants = inputs[-3]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])


def _backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    refuse_double_backward(OP)
    pairs = zip(ctx.saved_tensors, ctx.wants, strict=True)
    return (*(grad * d_loss.to(grad.dtype) if want else None for grad, want in pairs), *[None] * 15)


_linear_preference.register_autograd(_backward, setup_context=_setup)
