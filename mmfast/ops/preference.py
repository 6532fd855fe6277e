"""preference_loss: loss, metrics and the gradient by every log-prob in one pass over the scored tokens.

    S_e  = sum of w_n * logp_n over entry e          (divided by n_e = sum of w_n when `average`)
    a_e  = S_e - the same of the reference           (0 for the reference-free kinds)
    loss = 1 / pair_count * sum over pairs of  pair_weight * [f(a_chosen, a_rejected) - sft_weight * S_chosen]

The gradient is closed form and summed over repeated log-probs in a fixed order; it is made in the forward pass, and the
backward pass scales it. docs/ops/preference_loss.md has the kinds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast.kernels.preference_terms import pair_terms

from .arguments import EXACT, INDEX, OFFSETS, Shape, check, check_offsets, check_range, refuse_double_backward
from .dispatch import choose
from .kinds import SORTING
from .launch import LeanOp
from .preference_kernels import PreferenceTensors, Raw, preference_native, preference_triton
from .preference_math import PreferenceSpec, aot_terms, make_spec
from .rows import segment_sum_torch

OP = "preference_loss"
METRICS = ("losses", "margins", "chosen_rewards", "rejected_rewards", "chosen_logps", "rejected_logps")


class PreferenceOutput(NamedTuple):
    """`loss` carries the gradient; the others, one value a pair, carry none. loss = losses.sum() / pair_count."""

    loss: Tensor
    losses: Tensor  # pair weight and SFT term included
    margins: Tensor  # chosen_rewards - rejected_rewards
    chosen_rewards: Tensor  # beta * (S - S_ref)
    rejected_rewards: Tensor
    chosen_logps: Tensor  # S
    rejected_logps: Tensor


def preference_torch(tensors: PreferenceTensors, spec: PreferenceSpec) -> Raw:
    """The torch backend: masks [2P, N] in fp64. The rows of `inside` are the chosen sides, then the rejected."""
    logps, index, weights, ref_logps, responses, pairs, pair_weights, delta, *_ = tensors
    # Which tokens stand in which side, and what they weigh.
    count = tensors.tokens
    w = torch.ones(count, dtype=torch.float64, device=logps.device) if weights is None else weights.double()
    sides = pairs.t().reshape(-1)
    begin, end = responses[sides].long()[:, None], responses[sides + 1].long()[:, None]
    n = torch.arange(count, device=logps.device)[None, :]
    inside = (n >= begin) & (n < end)
    norm = torch.where(inside, w, 0.0).sum(1)
    norm = torch.where(norm == 0, 1.0, norm)
    unit = 1 / norm if spec.average else torch.ones_like(norm)
    share = torch.ones_like(inside, dtype=torch.float64)  # of each token in S: ld_alpha behind the shorter length
    if spec.ld_alpha != 1:
        lengths = (end - begin)[:, 0]
        shorter = torch.minimum(*lengths.chunk(2)).repeat(2)[:, None]
        share = share.masked_fill(n - begin >= shorter, spec.ld_alpha)

    def totals(values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns S, and S without ld_alpha, of every side."""
        product = torch.where(inside, w * values, 0.0)
        return (product * share).sum(1) * unit, product.sum(1) * unit

    # The sums of every side, the loss of every pair, and its derivatives by the two sums.
    own = logps.double() if index is None else logps.double().index_select(0, index)
    s, whole = totals(own)
    ref = torch.zeros_like(s) if ref_logps is None else totals(ref_logps.double())[0]
    (s_c, s_r), (ref_c, ref_r), (n_c, n_r) = s.chunk(2), ref.chunk(2), norm.chunk(2)
    if spec.name in SORTING:
        value, d_c, d_r = aot_terms(spec, s_c, s_r, ref_c, ref_r)
    else:
        numbers, *kind = spec.formula()
        shift = 0.0 if delta is None else delta.double()
        value, d_c, d_r = pair_terms(s_c - ref_c, s_r - ref_r, n_c, n_r, shift, *numbers, *kind)
    pair_weight = torch.ones_like(value) if pair_weights is None else pair_weights.double()
    sft = spec.sft_weight / n_c if spec.sft_average and not spec.average else torch.full_like(n_c, spec.sft_weight)
    value = pair_weight * (value - sft * whole.chunk(2)[0])
    chosen, rejected = spec.beta * (s_c - ref_c), spec.beta * (s_r - ref_r)
    metrics = torch.stack([value, chosen - rejected, chosen, rejected, s_c, s_r]).to(logps.dtype)

    # The gradient of every token, summed over the tokens that one log-prob scores.
    factor = (torch.cat([pair_weight, pair_weight]) * spec.scale * unit)[:, None]
    slopes = torch.cat([d_c, d_r])[:, None] * share - torch.cat([sft, torch.zeros_like(sft)])[:, None]
    by_token = torch.where(inside, factor * slopes, 0.0).sum(0) * w
    grad = by_token if index is None else segment_sum_torch(by_token, *tensors.inverse())
    return (value.sum() * spec.scale).to(logps.dtype), metrics, grad.to(logps.dtype)


def preference_raw(
    tensors: PreferenceTensors, spec: PreferenceSpec, want_grad: bool = True, backend: str = "torch"
) -> Raw:
    """Calls one backend's kernel, without autograd. Without want_grad the third result is empty."""
    if backend in ("cpu", "cuda"):
        return preference_native(backend, tensors, spec, want_grad)
    if backend == "triton":
        return preference_triton(tensors, spec, want_grad)
    loss, metrics, grad = preference_torch(tensors, spec)
    return loss, metrics, grad if want_grad else grad[:0]


# --- the op. others: the tensors of PreferenceTensors but for logps; options: the spec, each a number
def _forward(
    logps: Tensor, others: list[Tensor | None], options: list[float], want_grad: bool, backend: str
) -> list[Tensor]:
    tensors = PreferenceTensors(logps, *others)  # type: ignore[arg-type]
    return list(preference_raw(tensors, PreferenceSpec.of(options), want_grad, backend))


def _fake(logps: Tensor, others: list[Tensor], options: list[float], want_grad: bool, backend: str) -> list[Tensor]:
    metrics = logps.new_empty((len(METRICS), others[4].shape[0]))
    return [logps.new_empty(()), metrics, torch.empty_like(logps) if want_grad else logps.new_empty(0)]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        loss, metrics, grad = _preference.below(*arguments)
        ctx.mark_non_differentiable(metrics, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad)
        return loss, metrics, grad

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_double_backward(OP)
        return None if d_loss is None else d_loss * ctx.saved_tensors[0], None, None, None, None


_preference = LeanOp("preference_loss", _forward, _fake, _Gradient)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return (value if value.dtype == dtype else value.to(dtype)).contiguous()


def preference_loss(
    logps: Tensor, ref_logps: Tensor | None, responses: Tensor, pairs: Tensor, *, index: Tensor | None = None,
    weights: Tensor | None = None, loss: str = "sigmoid", beta: float = 0.1, average: bool = False,
    label_smoothing: float = 0.0, sft_weight: float = 0.0, sft_average: bool = False,
    pair_weights: Tensor | None = None, pair_count: float | None = None, f_divergence: str | None = None,
    f_alpha: float | None = None, tau: float | None = None, simpo_margin: float | None = None,
    delta: Tensor | None = None, ld_alpha: float | None = None, index_copies: Tensor | None = None,
    index_offsets: Tensor | None = None, backend: str | None = None,
) -> PreferenceOutput:  # fmt: skip
    """Takes logps[U], ref_logps[N], responses[R+1] and pairs[P, 2] of (chosen entry, rejected entry).

    Entry e holds the tokens responses[e]..responses[e+1] of index, weights and ref_logps; index[n] is the log-prob that
    scores token n (None: logps in order, U == N). Losses are summed and divided by pair_count (None: P).
    index_copies and index_offsets are the inverse of index (see Pack); without them a GPU sorts it at each call.
    """
    tensors, spec, name = prepare(
        logps, ref_logps, responses, pairs, index=index, weights=weights, pair_weights=pair_weights,
        pair_count=pair_count, delta=delta, backend=backend, loss=loss, beta=beta, average=average,
        label_smoothing=label_smoothing, sft_weight=sft_weight, sft_average=sft_average, f_divergence=f_divergence,
        f_alpha=f_alpha, tau=tau, simpo_margin=simpo_margin, ld_alpha=ld_alpha, index_copies=index_copies,
        index_offsets=index_offsets,
    )  # fmt: skip
    want_grad = logps.requires_grad and torch.is_grad_enabled()
    total, metrics, _ = _preference(tensors.logps, list(tensors[1:]), list(spec), want_grad, name)
    return PreferenceOutput(total, *metrics.unbind(0))


def prepare(
    logps: Tensor, ref_logps: Tensor | None, responses: Tensor, pairs: Tensor, *, index: Tensor | None = None,
    weights: Tensor | None = None, pair_weights: Tensor | None = None, pair_count: float | None = None,
    delta: Tensor | None = None, index_copies: Tensor | None = None, index_offsets: Tensor | None = None,
    backend: str | None = None, **objective: Any,
) -> tuple[PreferenceTensors, PreferenceSpec, str]:  # fmt: skip
    """Checks preference_loss's arguments; returns what preference_raw takes."""
    # Shapes and dtypes, an argument at a time; floats take the dtype of logps.
    check(OP, "logps", logps, EXACT, ("U",))
    device, dtype = logps.device, logps.dtype
    check(OP, "responses", responses, OFFSETS, ("R+1",), device)
    check(OP, "pairs", pairs, OFFSETS, ("P", 2), device)
    if index is not None:
        check(OP, "index", index, OFFSETS, ("N",), device)
    count = logps.shape[0] if index is None else index.shape[0]
    if (index_copies is None) != (index_offsets is None) or (index is None and index_copies is not None):
        raise ValueError(f"{OP}: index_copies and index_offsets go together, and with index")
    if index_copies is not None and index_offsets is not None:
        check(OP, "index_copies", index_copies, INDEX, (count,), device)
        check(OP, "index_offsets", index_offsets, INDEX, (logps.shape[0] + 1,), device)
        index_copies, index_offsets = index_copies.contiguous(), index_offsets.contiguous()
    tokens: Shape = (count,)
    ready: dict[str, Tensor | None] = {}
    for name, value, shape in (
        ("ref_logps", ref_logps, tokens),
        ("weights", weights, tokens),
        ("pair_weights", pair_weights, (pairs.shape[0],)),
        ("delta", delta, ()),
    ):
        if value is not None:
            check(OP, name, value, EXACT, shape, device)
            value = _as(value.detach(), dtype)
        ready[name] = value
    # The options, then the backend; indices where they are not looked at by the kernel itself.
    spec = make_spec(
        pairs=pairs.shape[0], pair_count=pair_count, has_reference=ref_logps is not None,
        has_pair_weights=pair_weights is not None, has_delta=delta is not None, **objective,
    )  # fmt: skip
    sorts = f"{spec.name!r} sorts over the batch, which only the torch backend does" if spec.name in SORTING else ""
    name = choose(OP, device, {"cuda": sorts, "triton": sorts, "cpu": sorts, "torch": ""}, backend)
    if name != "cpu":  # the native kernel looks at every index in its own pass
        check_offsets(OP, "responses", responses, count)
        check_range(OP, "pairs", pairs, 0, responses.shape[0] - 1)
        if index is not None:
            check_range(OP, "index", index, 0, logps.shape[0])
        if index_copies is not None and index_offsets is not None:
            check_range(OP, "index_copies", index_copies, 0, count)
            check_offsets(OP, "index_offsets", index_offsets, count)
    tensors = PreferenceTensors(
        logps.contiguous(), None if index is None else _as(index, torch.int64), ready["weights"], ready["ref_logps"],
        _as(responses, torch.int32), _as(pairs, torch.int64), ready["pair_weights"], ready["delta"],
        index_copies, index_offsets,
    )  # fmt: skip
    return tensors, spec, name
