"""The preference losses: specification, value and derivatives in closed form (as in csrc/preference.h).

a_c and a_r are the log-ratios S - S_ref of the chosen and the rejected side (S averaged when `average`; S_ref = 0 for
the reference-free kinds), n their sums of weights. docs/ops/preference_loss.md has every formula with its paper.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .kinds import DIVERGENCES, DIVERGING, KINDS, PER_TOKEN, REFERENCE_FREE, SMOOTHED, SORTING, WHOLE

DEFAULT_TAU = 0.05
DEFAULT_SIMPO_MARGIN = 0.5
ODDS_TOP = -(2.0**-23)  # orpo: 1 - p is at least fp32's epsilon
EXPONENT_TOP = 80.0  # divergences: exp stays finite in fp32


class PreferenceSpec(NamedTuple):
    """Everything about the loss that is not a tensor. `kind` and `divergence` index KINDS and DIVERGENCES."""

    kind: int
    divergence: int
    average: bool
    sft_average: bool
    beta: float
    smoothing: float
    sft_weight: float
    f_alpha: float
    tau: float
    simpo_margin: float
    ld_alpha: float
    scale: float  # 1 / pair_count

    def flat(self) -> list[float]:
        """A custom op takes it so."""
        return [float(value) for value in self]

    @staticmethod
    def of(flat: list[float]) -> PreferenceSpec:
        kind, divergence, average, sft_average, *numbers = flat
        return PreferenceSpec(int(kind), int(divergence), bool(average), bool(sft_average), *numbers)

    @property
    def name(self) -> str:
        return KINDS[self.kind]


def make_spec(
    loss: str = "sigmoid", *, beta: float = 0.1, average: bool = False, label_smoothing: float = 0.0,
    sft_weight: float = 0.0, sft_average: bool = False, f_divergence: str | None = None, f_alpha: float | None = None,
    tau: float | None = None, simpo_margin: float | None = None, ld_alpha: float | None = None, pairs: int = 1,
    pair_count: float | None = None, has_reference: bool = True, has_pair_weights: bool = False,
    has_delta: bool = False, op: str = "preference_loss",
) -> PreferenceSpec:  # fmt: skip
    """Refuses what cannot take effect, with the reason; fills in the defaults."""

    def refuse(problem: str) -> None:
        raise ValueError(f"{op}: {problem}")

    # What each option may be, by itself and beside the kind of loss.
    if loss not in KINDS:
        refuse(f"unknown loss {loss!r}: choose one of {', '.join(KINDS)}")
    if not (beta > 0 and math.isfinite(beta)):
        refuse(f"beta must be positive, not {beta}")
    if loss in REFERENCE_FREE and has_reference:
        refuse(f"loss {loss!r} has no reference model: leave ref_logps out")
    if loss not in REFERENCE_FREE and not has_reference:
        refuse(f"loss {loss!r} needs ref_logps; {', '.join(REFERENCE_FREE)} do without")
    low, high = (0.0, 0.5) if loss == "robust" else (0.0, 1.0)
    if label_smoothing and loss not in SMOOTHED:
        refuse(f"label_smoothing has no effect on {loss!r}; it acts on {', '.join(SMOOTHED)}")
    if not low <= label_smoothing < high:
        refuse(f"label_smoothing must be in [{low:g}, {high:g}) for {loss!r}, not {label_smoothing}")
    if loss == "exo_pair" and label_smoothing == 0:
        refuse("exo_pair needs label_smoothing > 0 (it takes the logarithm of it); 1e-3 is usual")
    divergence = f_divergence or "reverse_kl"
    if divergence not in DIVERGENCES:
        refuse(f"unknown f_divergence {f_divergence!r}: choose one of {', '.join(DIVERGENCES)}")
    if divergence != "reverse_kl" and loss not in DIVERGING:
        refuse(f"f_divergence {divergence!r} is not defined for {loss!r}, only for {', '.join(DIVERGING)}")
    if (f_alpha is not None) != (divergence == "alpha_divergence"):
        refuse("f_alpha goes with f_divergence='alpha_divergence', which needs it")
    for name, value, kind in (("tau", tau, "discopop"), ("simpo_margin", simpo_margin, "simpo")):
        if value is not None and loss != kind:
            refuse(f"{name} has no effect on {loss!r}, only on {kind!r}")
    if tau is not None and not tau > 0:
        refuse(f"tau must be positive, not {tau}")
    if has_delta and loss != "bco_pair":
        refuse(f"delta has no effect on {loss!r}, only on 'bco_pair'")
    if ld_alpha is not None and not 0 <= ld_alpha <= 1:
        refuse(f"ld_alpha must be in [0, 1], not {ld_alpha}")
    if ld_alpha not in (None, 1.0) and loss in WHOLE:
        refuse(f"ld_alpha does not go with {loss!r}, which is a likelihood of whole answers")
    if sft_average and not sft_weight:
        refuse("sft_average has no effect without sft_weight")
    if pair_count is not None and not pair_count > 0:
        refuse(f"pair_count must be positive, not {pair_count}")
    # A kind that sorts compares all pairs of a step at once.
    if loss in SORTING:
        if pair_count is not None and pair_count != pairs:
            refuse(
                f"{loss!r} sorts over the whole batch: pair_count is {pair_count}, but {pairs} pairs are here. "
                "Put the step into one pack"
            )
        if has_pair_weights:
            refuse(f"pair_weights are not defined for {loss!r}, which compares sorted lists, not pairs")
    return PreferenceSpec(
        KINDS.index(loss), DIVERGENCES.index(divergence), bool(average), bool(sft_average), float(beta),
        float(label_smoothing), float(sft_weight), float(f_alpha or 0.0),
        float(DEFAULT_TAU if tau is None else tau),
        float(DEFAULT_SIMPO_MARGIN if simpo_margin is None else simpo_margin),
        float(1.0 if ld_alpha is None else ld_alpha), 1.0 / float(pair_count or max(pairs, 1)),
    )  # fmt: skip


def divergence_score(spec: PreferenceSpec, a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns f'(e^a) of the divergence, and its derivative by a."""
    divergence = DIVERGENCES[spec.divergence]
    if divergence == "forward_kl":
        e = torch.exp((-a).clamp(max=EXPONENT_TOP))
        return 1 - e, torch.where(-a > EXPONENT_TOP, 0.0, e)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(a), torch.sigmoid(-a)
    if divergence == "alpha_divergence" and abs(spec.f_alpha - 1) >= 1e-6:
        t = (spec.f_alpha - 1) * a
        top = t.clamp(max=EXPONENT_TOP)
        return torch.expm1(top) / (spec.f_alpha - 1), torch.where(t > EXPONENT_TOP, 0.0, torch.exp(top))
    return a, torch.ones_like(a)


def smoothed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns -(1 - eps) log sigma(x) - eps log sigma(-x), and its derivative."""
    value = -(1 - eps) * logsigmoid(x) - eps * logsigmoid(-x)
    return value, -(1 - eps) * torch.sigmoid(-x) + eps * torch.sigmoid(x)


def margin_terms(spec: PreferenceSpec, score: Tensor) -> tuple[Tensor, Tensor]:
    """Returns value and derivative, by the difference of scores, of the kinds that are a function of that alone."""
    b, eps, kind = spec.beta, spec.smoothing, spec.name
    if kind == "ipo":
        x = score - 0.5 / b
        return x * x, 2 * x
    x = b * score
    sigma = torch.sigmoid
    if kind == "hinge":
        return torch.relu(1 - x), -b * (x < 1).to(x.dtype)
    if kind == "robust":
        value = (-(1 - eps) * logsigmoid(x) + eps * logsigmoid(-x)) / (1 - 2 * eps)
        return value, b * (-(1 - eps) * sigma(-x) - eps * sigma(x)) / (1 - 2 * eps)
    if kind == "exo_pair":
        low, high = math.log(eps), math.log1p(-eps)
        value = sigma(x) * (logsigmoid(x) - high) + sigma(-x) * (logsigmoid(-x) - low)
        return value, b * sigma(x) * sigma(-x) * (x + low - high)
    if kind == "discopop":
        logistic, gate, closed = -logsigmoid(x), sigma(x / spec.tau), sigma(-x / spec.tau)
        exponential = torch.exp(-x + logsigmoid(x / spec.tau))  # the product of exp and sigma gives inf * 0
        slope = -sigma(-x) * closed - logistic * gate * closed / spec.tau + exponential * (closed / spec.tau - 1)
        return logistic * closed + exponential, b * slope
    if kind == "simpo":
        x = x - spec.simpo_margin
    value, slope = smoothed(x, eps)
    return value, b * slope


def pair_terms(
    spec: PreferenceSpec, a_c: Tensor, a_r: Tensor, n_c: Tensor, n_r: Tensor, delta: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each pair's loss and its derivatives by a_c and a_r, in fp64. (The kinds that sort are in aot_terms.)"""
    # First the kinds that are functions of both log-ratios; then those of one difference of scores.
    b, kind, sigma = spec.beta, spec.name, torch.sigmoid
    i_c = i_r = torch.ones_like(a_c)
    if kind in PER_TOKEN and not spec.average:
        i_c, i_r = (1 / torch.where(n == 0, 1.0, n) for n in (n_c, n_r))
    if kind == "nca_pair":
        c, r = b * a_c, b * a_r
        value = -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)
        return value, b * (0.5 * sigma(c) - sigma(-c)), 0.5 * b * sigma(r)
    if kind == "bco_pair":
        shift = 0.0 if delta is None else delta.to(a_c.dtype)
        c, r = b * a_c - shift, b * a_r - shift
        return -logsigmoid(c) - logsigmoid(-r), -b * sigma(-c), b * sigma(r)
    if kind == "sppo_hard":
        c, r = a_c - 0.5 / b, a_r + 0.5 / b
        return c * c + r * r, 2 * c, 2 * r
    if kind == "apo_zero":
        c, r = b * a_c, b * a_r
        return sigma(-c) + sigma(r), -b * sigma(c) * sigma(-c), b * sigma(r) * sigma(-r)
    if kind == "apo_down":
        c, m = b * a_c, b * (a_c - a_r)
        slope = b * sigma(m) * sigma(-m)
        return sigma(c) + sigma(-m), b * sigma(c) * sigma(-c) - slope, slope
    if kind == "orpo":
        c, r = a_c * i_c, a_r * i_r
        e_c, e_r = (-torch.expm1(x.clamp(max=ODDS_TOP)) for x in (c, r))
        x = (c - e_c.log()) - (r - e_r.log())
        slope = -b * sigma(-x)
        return -c - b * logsigmoid(x), (slope / e_c - 1) * i_c, -slope / e_r * i_r
    if kind == "sft":
        return -a_c, -torch.ones_like(a_c), torch.zeros_like(a_c)
    (score_c, slope_c), (score_r, slope_r) = divergence_score(spec, a_c), divergence_score(spec, a_r)
    value, slope = margin_terms(spec, score_c * i_c - score_r * i_r)
    return value, slope * slope_c * i_c, -slope * slope_r * i_r


def aot_terms(
    spec: PreferenceSpec, s_c: Tensor, s_r: Tensor, ref_c: Tensor, ref_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Optimal transport compares sorted with sorted. The i-th loss goes to the pair whose (chosen) ratio ranks i."""
    if spec.name == "aot":
        ours, order_c = (s_c - s_r).sort(stable=True)
        other, order_r = (ref_c - ref_r).sort(stable=True)
    else:
        ours, order_c = (s_c - ref_c).sort(stable=True)
        other, order_r = (s_r - ref_r).sort(stable=True)
    value, slope = smoothed(spec.beta * (ours - other), spec.smoothing)
    at_c = torch.empty_like(value).scatter_(0, order_c, spec.beta * slope)
    value = torch.empty_like(value).scatter_(0, order_c, value)
    if spec.name == "aot":
        return value, at_c, -at_c
    return value, at_c, torch.empty_like(value).scatter_(0, order_r, -spec.beta * slope)
