"""The preference losses of one pair in closed form, written once for torch and Triton.

torch runs these functions as they stand; kernels/preference.py compiles the same text with Triton's primitives behind
the names that are imported here. So they are made of those names and of arithmetic, have no annotations (Triton would
look them up), and branch on nothing but `kind`, `divergence` and `per_token`, which Triton knows at compile time. C++
has them in csrc/preference.h; a test compares all three on random pairs. docs/ops/preference_loss.md has the papers.
"""

from torch import exp, expm1, log, sigmoid, where
from torch.nn.functional import logsigmoid


def at_most(top, x):
    return where(x > top, top, x)


def constant(value, like):
    """Also where `like` is not finite, and in its dtype, which torch takes from a tensor only."""
    return where(like > 0, value, where(like > 0, like, value))


def divergence_score(a, f_alpha, divergence):
    """Returns f'(e^a) of the divergence, and its derivative by a. Exponents stop at 80, where fp32 holds the result."""
    if divergence == "forward_kl":
        slope = where(-a > 80.0, 0.0, exp(at_most(80.0, -a)))
        score = 1.0 - exp(at_most(80.0, -a))
    elif divergence == "js_divergence":
        slope = sigmoid(-a)
        score = 0.693147180559945309417 + logsigmoid(a)
    elif divergence == "alpha_divergence":
        t = (f_alpha - 1.0) * a
        slope = where(t > 80.0, 0.0, exp(at_most(80.0, t)))
        score = expm1(at_most(80.0, t)) / (f_alpha - 1.0)
    else:
        slope = constant(1.0, a)
        score = a
    return score, slope


def smoothed(x, eps):
    """Returns -(1 - eps) log sigma(x) - eps log sigma(-x), and its derivative."""
    value = -(1 - eps) * logsigmoid(x) - eps * logsigmoid(-x)
    return value, -(1 - eps) * sigmoid(-x) + eps * sigmoid(x)


def margin_terms(score, b, eps, log_eps, log1m_eps, tau, margin, kind):
    """Returns value and derivative, by the difference of scores, of the kinds that are a function of that alone."""
    x = b * score
    if kind == "ipo":
        x = score - 0.5 / b
        value = x * x
        slope = 2 * x / b
    elif kind == "hinge":
        value = where(x >= 1, 0.0, 1 - x)
        slope = where(x >= 1, 0.0, constant(-1.0, x))
    elif kind == "robust":
        value = (-(1 - eps) * logsigmoid(x) + eps * logsigmoid(-x)) / (1 - 2 * eps)
        slope = (-(1 - eps) * sigmoid(-x) - eps * sigmoid(x)) / (1 - 2 * eps)
    elif kind == "exo_pair":
        value = sigmoid(x) * (logsigmoid(x) - log1m_eps) + sigmoid(-x) * (logsigmoid(-x) - log_eps)
        slope = sigmoid(x) * sigmoid(-x) * (x + log_eps - log1m_eps)
    elif kind == "discopop":
        closed = sigmoid(-x / tau)
        exponential = exp(-x + logsigmoid(x / tau))  # the product of exp and sigma gives inf * 0
        value = -logsigmoid(x) * closed + exponential
        slope = (
            -sigmoid(-x) * closed + logsigmoid(x) * sigmoid(x / tau) * closed / tau + exponential * (closed / tau - 1)
        )
    else:  # sigmoid, sigmoid_norm, simpo
        if kind == "simpo":
            x = x - margin
        value, slope = smoothed(x, eps)
    return value, b * slope


def pair_terms(
    a_c, a_r, n_c, n_r, shift, b, eps, log_eps, log1m_eps, f_alpha, tau, margin, kind, divergence, per_token
):
    """Returns each pair's loss and its derivatives by a_c and a_r, in fp64. (The kinds that sort are in aot_terms.)

    a_c and a_r are the log-ratios S - S_ref of the two sides, n_c and n_r their sums of weights, none of them zero.
    """
    # First the kinds that are functions of both log-ratios; then those of one difference of scores.
    i_c = 1 / n_c if per_token else constant(1.0, n_c)
    i_r = 1 / n_r if per_token else constant(1.0, n_r)
    c = b * a_c
    r = b * a_r
    if kind == "nca_pair":
        value = -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)
        d_c = b * (0.5 * sigmoid(c) - sigmoid(-c))
        d_r = 0.5 * b * sigmoid(r)
    elif kind == "bco_pair":
        value = -logsigmoid(c - shift) - logsigmoid(shift - r)
        d_c = -b * sigmoid(shift - c)
        d_r = b * sigmoid(r - shift)
    elif kind == "sppo_hard":
        d_c = 2 * (a_c - 0.5 / b)
        d_r = 2 * (a_r + 0.5 / b)
        value = 0.25 * (d_c * d_c + d_r * d_r)
    elif kind == "apo_zero":
        value = sigmoid(-c) + sigmoid(r)
        d_c = -b * sigmoid(c) * sigmoid(-c)
        d_r = b * sigmoid(r) * sigmoid(-r)
    elif kind == "apo_down":
        value = sigmoid(c) + sigmoid(r - c)
        d_r = b * sigmoid(c - r) * sigmoid(r - c)
        d_c = b * sigmoid(c) * sigmoid(-c) - d_r
    elif kind == "orpo":  # 1 - p is at least fp32's epsilon
        c = a_c * i_c
        r = a_r * i_r
        e_c = -expm1(at_most(-1.1920928955078125e-07, c))
        e_r = -expm1(at_most(-1.1920928955078125e-07, r))
        x = (c - log(e_c)) - (r - log(e_r))
        slope = -b * sigmoid(-x)
        value = -c - b * logsigmoid(x)
        d_c = (slope / e_c - 1.0) * i_c
        d_r = -slope / e_r * i_r
    elif kind == "sft":
        value = -a_c
        d_c = constant(-1.0, a_c)
        d_r = constant(0.0, a_r)
    else:
        score_c, slope_c = divergence_score(a_c, f_alpha, divergence)
        score_r, slope_r = divergence_score(a_r, f_alpha, divergence)
        value, slope = margin_terms(score_c * i_c - score_r * i_r, b, eps, log_eps, log1m_eps, tau, margin, kind)
        d_c = slope * slope_c * i_c
        d_r = -slope * slope_r * i_r
    return value, d_c, d_r
