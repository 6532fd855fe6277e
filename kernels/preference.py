"""preference_loss: a program a pair, then a program an entry for the gradient of its tokens.

The formulas are those of kernels/preference_terms.py, kind and divergence known at compile time; all in fp64, where
exp(x) - 1 and log(1 + x) need no special functions for a result in fp32.
"""

from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import preference_terms

BLOCK = 1024
SIDES, TOKENS = 32, 64  # of a program of the gradient at a time


@triton.jit
def double(x):
    """A setting in fp64, in the interpreter too, which hands over Python floats and takes them for fp32."""
    return tl.full([], x, tl.float64)


# --- the names that the formulas are written with


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def expm1(x):
    return tl.exp(x) - 1.0


@triton.jit
def logsigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


def bound(formula: Any) -> Any:
    """The formula's own text, in which those names mean the functions above."""
    return triton.jit(FunctionType(formula.__code__, globals(), formula.__name__))


at_most, constant = bound(preference_terms.at_most), bound(preference_terms.constant)
divergence_score, smoothed = bound(preference_terms.divergence_score), bound(preference_terms.smoothed)
margin_terms, pair_terms = bound(preference_terms.margin_terms), bound(preference_terms.pair_terms)


@triton.jit
def side_sums(
    logps, index, weights, ref, begin, cut, end, ld_alpha,
    HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_REF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """S, S_ref, n and S without ld_alpha of tokens [begin, end), not averaged."""
    own = tl.zeros([BLOCK], tl.float64)
    whole = tl.zeros([BLOCK], tl.float64)
    expected = tl.zeros([BLOCK], tl.float64)
    norm = tl.zeros([BLOCK], tl.float64)
    for start in range(begin, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < end
        u = n
        if HAS_INDEX:
            u = tl.load(index + n, mask=inside, other=0)
        w = tl.where(inside, 1.0, 0.0).to(tl.float64)
        if HAS_WEIGHTS:
            w = tl.load(weights + n, mask=inside, other=0.0).to(tl.float64)
        product = w * tl.load(logps + u, mask=inside, other=0.0).to(tl.float64)
        share = tl.where(n < cut, 1.0, ld_alpha)
        own += share * product
        whole += product
        norm += w
        if HAS_REF:
            expected += share * w * tl.load(ref + n, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(own, 0), tl.sum(expected, 0), tl.sum(norm, 0), tl.sum(whole, 0)


@triton.jit
def preference_pair_kernel(
    logps, index, weights, ref, responses, pairs, pair_weights, delta, metrics, values, by_s, by_whole, P,
    beta: tl.float64, smoothing: tl.float64, log_eps: tl.float64, log1m_eps: tl.float64, f_alpha: tl.float64,
    tau: tl.float64, margin: tl.float64, sft_weight: tl.float64, ld_alpha: tl.float64, scale: tl.float64,
    KIND: tl.constexpr, DIVERGENCE: tl.constexpr, PER_TOKEN: tl.constexpr, AVERAGE: tl.constexpr,
    SFT_AVERAGE: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_REF: tl.constexpr,
    HAS_PAIR_WEIGHTS: tl.constexpr, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    b, sft, ld_alpha, scale = double(beta), double(sft_weight), double(ld_alpha), double(scale)
    # The sums of both sides, averaged where the spec says so.
    chosen = tl.load(pairs + 2 * p)
    rejected = tl.load(pairs + 2 * p + 1)
    begin_c = tl.load(responses + chosen)
    end_c = tl.load(responses + chosen + 1)
    begin_r = tl.load(responses + rejected)
    end_r = tl.load(responses + rejected + 1)
    shorter = tl.minimum(end_c - begin_c, end_r - begin_r)
    s_c, ref_c, n_c, whole_c = side_sums(
        logps, index, weights, ref, begin_c, begin_c + shorter, end_c, ld_alpha, HAS_INDEX, HAS_WEIGHTS, HAS_REF, BLOCK
    )
    s_r, ref_r, n_r, _ = side_sums(
        logps, index, weights, ref, begin_r, begin_r + shorter, end_r, ld_alpha, HAS_INDEX, HAS_WEIGHTS, HAS_REF, BLOCK
    )
    n_c = tl.where(n_c == 0, 1.0, n_c)
    n_r = tl.where(n_r == 0, 1.0, n_r)
    unit_c = b / b
    unit_r = b / b
    if AVERAGE:
        unit_c = 1.0 / n_c
        unit_r = 1.0 / n_r
    elif SFT_AVERAGE:
        sft = sft / n_c
    s_c *= unit_c
    s_r *= unit_r
    a_c = s_c - ref_c * unit_c
    a_r = s_r - ref_r * unit_r
    # The loss and its derivatives, then the metrics, then the slopes that the second kernel spreads over tokens.
    shift = b * 0.0
    if HAS_DELTA:
        shift = tl.load(delta).to(tl.float64)
    weight = b / b
    if HAS_PAIR_WEIGHTS:
        weight = tl.load(pair_weights + p).to(tl.float64)
    value, d_c, d_r = pair_terms(
        a_c, a_r, n_c, n_r, shift, b, double(smoothing), double(log_eps), double(log1m_eps), double(f_alpha),
        double(tau), double(margin), KIND, DIVERGENCE, PER_TOKEN,
    )  # fmt: skip
    value = weight * (value - sft * whole_c * unit_c)
    out = metrics.dtype.element_ty
    tl.store(metrics + p, value.to(out))
    tl.store(metrics + P + p, (b * (a_c - a_r)).to(out))
    tl.store(metrics + 2 * P + p, (b * a_c).to(out))
    tl.store(metrics + 3 * P + p, (b * a_r).to(out))
    tl.store(metrics + 4 * P + p, s_c.to(out))
    tl.store(metrics + 5 * P + p, s_r.to(out))
    tl.store(values + p, value * scale)
    tl.store(by_s + 2 * p, weight * scale * unit_c * d_c)
    tl.store(by_s + 2 * p + 1, weight * scale * unit_r * d_r)
    tl.store(by_whole + 2 * p, -weight * scale * unit_c * sft)
    tl.store(by_whole + 2 * p + 1, b * 0.0)


@triton.jit
def preference_gradient_kernel(
    weights, responses, pairs, by_s, by_whole, by_token, P, ld_alpha: tl.float64,
    HAS_WEIGHTS: tl.constexpr, SIDES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program e adds, for each of its tokens, the slopes of the sides that are entry e, in one order of the pairs."""
    e = tl.program_id(0).to(tl.int64)
    ld_alpha = double(ld_alpha)
    begin = tl.load(responses + e)
    end = tl.load(responses + e + 1)
    for start in range(begin, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < end
        slope = tl.zeros([BLOCK], tl.float64)
        for first in range(0, 2 * P, SIDES):
            side = first + tl.arange(0, SIDES)
            here = tl.load(pairs + side, mask=side < 2 * P, other=-1) == e
            other = tl.load(pairs + (side ^ 1), mask=here, other=0)
            length = tl.load(responses + other + 1, mask=here) - tl.load(responses + other, mask=here)
            cut = begin + tl.minimum(length, end - begin)
            share = tl.where(n[None, :] < cut[:, None], 1.0, ld_alpha)
            s = tl.load(by_s + side, mask=here, other=0.0)
            whole = tl.load(by_whole + side, mask=here, other=0.0)
            slope += tl.sum(s[:, None] * share + whole[:, None], 0)
        if HAS_WEIGHTS:
            slope *= tl.load(weights + n, mask=inside, other=0.0).to(tl.float64)
        tl.store(by_token + n, slope, mask=inside)


def preference(
    tensors: Any, numbers: tuple[float, ...], constants: dict[str, Any], want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics [6, P] and, in fp64, the gradient of every token [N] (empty if not wanted).

    `tensors` as in mmfast/ops/preference_kernels.py. `numbers` are the settings from beta to scale; as arguments of the
    launch, no copy from the host, which a CUDA graph could not replay. `constants` are those from KIND to SFT_AVERAGE.
    """
    logps, index, weights, ref, responses, pairs, pair_weights, delta, *_ = tensors
    count, entries, P = tensors.tokens, responses.shape[0] - 1, pairs.shape[0]
    metrics = logps.new_empty(6, P)
    values, by_s, by_whole = (logps.new_empty(n, dtype=torch.float64) for n in (P, 2 * P, 2 * P))
    by_token = logps.new_zeros(count if want_grad else 0, dtype=torch.float64)
    given = lambda t: logps if t is None else t  # noqa: E731
    if P:
        preference_pair_kernel[(P,)](
            logps, given(index), given(weights), given(ref), responses, pairs, given(pair_weights), given(delta),
            metrics, values, by_s, by_whole, P, *numbers, **constants, HAS_INDEX=index is not None,
            HAS_WEIGHTS=weights is not None, HAS_REF=ref is not None, HAS_PAIR_WEIGHTS=pair_weights is not None,
            HAS_DELTA=delta is not None, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    if P and count and want_grad:
        preference_gradient_kernel[(entries,)](
            given(weights), responses, pairs, by_s, by_whole, by_token, P, numbers[-2],
            HAS_WEIGHTS=weights is not None, SIDES=SIDES, BLOCK=TOKENS, num_warps=4,
        )  # fmt: skip
    return values.sum().to(logps.dtype), metrics, by_token
