"""preference_loss: a program a pair, then a program an entry for the gradient of its tokens.

The pair's loss and derivatives are those of csrc/preference.h, with kind and divergence known at compile time; all in
fp64, where exp(x) - 1 and log(1 + x) need no special functions for a result in fp32.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def double(x):
    """A setting in fp64, in the interpreter too, which hands over Python floats and takes them for fp32."""
    return tl.full([], x, tl.float64)


@triton.jit
def log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def divergence_score(a, f_alpha, DIVERGENCE: tl.constexpr):
    """f'(e^a) and its derivative by a."""
    score = a
    slope = a * 0.0 + 1.0
    if DIVERGENCE == "forward_kl":
        e = tl.exp(tl.minimum(-a, 80.0))
        score = 1.0 - e
        slope = tl.where(-a > 80.0, 0.0, e)
    if DIVERGENCE == "js_divergence":
        score = 0.693147180559945309417 + log_sigmoid(a)
        slope = sigmoid(-a)
    if DIVERGENCE == "alpha_divergence":
        t = (f_alpha - 1.0) * a
        e = tl.exp(tl.minimum(t, 80.0))
        score = (e - 1.0) / (f_alpha - 1.0)
        slope = tl.where(t > 80.0, 0.0, e)
    return score, slope


@triton.jit
def pair_terms(
    a_c, a_r, n_c, n_r, shift, b, eps, log_eps, log1m_eps, f_alpha, tau, simpo_margin,
    KIND: tl.constexpr, DIVERGENCE: tl.constexpr, AVERAGE: tl.constexpr,
):  # fmt: skip
    """The loss and its derivatives by a_c and a_r: first the kinds that are functions of both, then those of one
    difference of scores."""
    i_c = a_c * 0.0 + 1.0
    i_r = i_c
    if (KIND == "ipo" or KIND == "sigmoid_norm" or KIND == "orpo" or KIND == "simpo") and not AVERAGE:
        i_c = 1.0 / n_c
        i_r = 1.0 / n_r
    c = b * a_c
    r = b * a_r
    if KIND == "nca_pair":
        value = -log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r)
        d_c = b * (0.5 * sigmoid(c) - sigmoid(-c))
        d_r = 0.5 * b * sigmoid(r)
    elif KIND == "bco_pair":
        value = -log_sigmoid(c - shift) - log_sigmoid(shift - r)
        d_c = -b * sigmoid(shift - c)
        d_r = b * sigmoid(r - shift)
    elif KIND == "sppo_hard":
        c = a_c - 0.5 / b
        r = a_r + 0.5 / b
        value = c * c + r * r
        d_c = 2 * c
        d_r = 2 * r
    elif KIND == "apo_zero":
        value = sigmoid(-c) + sigmoid(r)
        d_c = -b * sigmoid(c) * sigmoid(-c)
        d_r = b * sigmoid(r) * sigmoid(-r)
    elif KIND == "apo_down":
        value = sigmoid(c) + sigmoid(r - c)
        d_r = b * sigmoid(c - r) * sigmoid(r - c)
        d_c = b * sigmoid(c) * sigmoid(-c) - d_r
    elif KIND == "orpo":
        c = a_c * i_c
        r = a_r * i_r
        e_c = 1.0 - tl.exp(tl.minimum(c, -1.1920928955078125e-07))
        e_r = 1.0 - tl.exp(tl.minimum(r, -1.1920928955078125e-07))
        x = (c - tl.log(e_c)) - (r - tl.log(e_r))
        slope = -b * sigmoid(-x)
        value = -c - b * log_sigmoid(x)
        d_c = (slope / e_c - 1.0) * i_c
        d_r = -slope / e_r * i_r
    elif KIND == "sft":
        value = -a_c
        d_c = a_c * 0.0 - 1.0
        d_r = a_c * 0.0
    else:
        score_c, slope_c = divergence_score(a_c, f_alpha, DIVERGENCE)
        score_r, slope_r = divergence_score(a_r, f_alpha, DIVERGENCE)
        score = score_c * i_c - score_r * i_r
        x = b * score
        unit = b
        if KIND == "hinge":
            value = tl.maximum(1.0 - x, 0.0)
            slope = tl.where(x < 1, -1.0, 0.0)
        elif KIND == "ipo":
            x = score - 0.5 / b
            value = x * x
            slope = 2 * x
            unit = b / b
        elif KIND == "robust":
            value = (-(1 - eps) * log_sigmoid(x) + eps * log_sigmoid(-x)) / (1 - 2 * eps)
            slope = (-(1 - eps) * sigmoid(-x) - eps * sigmoid(x)) / (1 - 2 * eps)
        elif KIND == "exo_pair":
            value = sigmoid(x) * (log_sigmoid(x) - log1m_eps) + sigmoid(-x) * (log_sigmoid(-x) - log_eps)
            slope = sigmoid(x) * sigmoid(-x) * (x + log_eps - log1m_eps)
        elif KIND == "discopop":
            logistic = -log_sigmoid(x)
            gate = sigmoid(x / tau)
            closed = sigmoid(-x / tau)
            exponential = tl.exp(-x + log_sigmoid(x / tau))
            value = logistic * closed + exponential
            slope = -sigmoid(-x) * closed - logistic * gate * closed / tau + exponential * (closed / tau - 1)
        else:  # sigmoid, sigmoid_norm, simpo
            if KIND == "simpo":
                x -= simpo_margin
            value = -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)
            slope = -(1 - eps) * sigmoid(-x) + eps * sigmoid(x)
        d_c = slope * unit * slope_c * i_c
        d_r = -slope * unit * slope_r * i_r
    return value, d_c, d_r


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
    beta: tl.float64, smoothing: tl.float64, sft_weight: tl.float64, f_alpha: tl.float64, tau: tl.float64,
    simpo_margin: tl.float64, ld_alpha: tl.float64, scale: tl.float64, log_eps: tl.float64, log1m_eps: tl.float64,
    KIND: tl.constexpr, DIVERGENCE: tl.constexpr, AVERAGE: tl.constexpr, SFT_AVERAGE: tl.constexpr,
    HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_REF: tl.constexpr, HAS_PAIR_WEIGHTS: tl.constexpr,
    HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
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
        double(tau), double(simpo_margin), KIND, DIVERGENCE, AVERAGE,
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
    HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program e adds, for each of its tokens, the slopes of the sides that are entry e, in order of the pairs."""
    e = tl.program_id(0).to(tl.int64)
    ld_alpha = double(ld_alpha)
    begin = tl.load(responses + e)
    end = tl.load(responses + e + 1)
    for start in range(begin, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < end
        slope = tl.zeros([BLOCK], tl.float64)
        for side in range(2 * P):
            if tl.load(pairs + side) == e:
                other = tl.load(pairs + side + 1 - 2 * (side % 2))
                shorter = tl.minimum(end - begin, tl.load(responses + other + 1) - tl.load(responses + other))
                share = tl.where(n < begin + shorter, 1.0, ld_alpha)
                slope += tl.load(by_s + side) * share + tl.load(by_whole + side)
        if HAS_WEIGHTS:
            slope *= tl.load(weights + n, mask=inside, other=0.0).to(tl.float64)
        tl.store(by_token + n, slope, mask=inside)


def preference(
    logps: Tensor,
    index: Tensor | None,
    weights: Tensor | None,
    ref: Tensor | None,
    responses: Tensor,
    pairs: Tensor,
    pair_weights: Tensor | None,
    delta: Tensor | None,
    settings: dict[str, Any],
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics [6, P] and, in fp64, the gradient of every token [N] (empty if not wanted).

    The settings are arguments of the launch: no copy from the host, which a CUDA graph could not replay.
    """
    count, entries, P = (logps if index is None else index).shape[0], responses.shape[0] - 1, pairs.shape[0]
    eps = settings["smoothing"]
    names = ("beta", "smoothing", "sft_weight", "f_alpha", "tau", "simpo_margin", "ld_alpha", "scale")
    alpha = settings["divergence"] == "alpha_divergence" and abs(settings["f_alpha"] - 1) < 1e-6
    divergence = "reverse_kl" if alpha else settings["divergence"]  # its limit at 1
    logs = (math.log(x) if x > 0 else -math.inf for x in (eps, 1 - eps))
    numbers = [*(float(settings[name]) for name in names), *logs]
    metrics = logps.new_empty(6, P)
    values, by_s, by_whole = (logps.new_empty(n, dtype=torch.float64) for n in (P, 2 * P, 2 * P))
    by_token = logps.new_zeros(count if want_grad else 0, dtype=torch.float64)
    given = lambda t: logps if t is None else t  # noqa: E731
    if P:
        preference_pair_kernel[(P,)](
            logps, given(index), given(weights), given(ref), responses, pairs, given(pair_weights), given(delta),
            metrics, values, by_s, by_whole, P, *numbers, KIND=settings["kind"], DIVERGENCE=divergence,
            AVERAGE=settings["average"], SFT_AVERAGE=settings["sft_average"], HAS_INDEX=index is not None,
            HAS_WEIGHTS=weights is not None, HAS_REF=ref is not None, HAS_PAIR_WEIGHTS=pair_weights is not None,
            HAS_DELTA=delta is not None, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    if P and count and want_grad:
        preference_gradient_kernel[(entries,)](
            given(weights), responses, pairs, by_s, by_whole, by_token, P, float(settings["ld_alpha"]),
            HAS_WEIGHTS=weights is not None, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return values.sum().to(logps.dtype), metrics, by_token
