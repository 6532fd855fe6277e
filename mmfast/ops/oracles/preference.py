"""The oracle of preference_loss: a loop over pairs, autograd for the gradient, formulas as the papers print them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmfast.ops.kinds import DIVERGENCES, PER_TOKEN
from mmfast.ops.preference_math import PreferenceSpec


def score(spec: PreferenceSpec, a: Tensor) -> Tensor:
    """Returns f'(u) at u = pi / pi_ref = e^a, up to constants that cancel in differences."""
    u, alpha = torch.exp(a), spec.f_alpha
    name = DIVERGENCES[spec.divergence]
    if name == "forward_kl":
        return -1 / u + 1
    if name == "js_divergence":
        return torch.log(2 * u / (1 + u))
    if name == "alpha_divergence":
        return (u ** (alpha - 1) - 1) / (alpha - 1)
    return a


def cross(x: Tensor, eps: float) -> Tensor:
    return -(1 - eps) * logsigmoid(x) - eps * logsigmoid(-x)


def pair_loss(spec: PreferenceSpec, c: Tensor, r: Tensor, n_c: Tensor, n_r: Tensor, delta: Tensor | float) -> Tensor:
    b, eps, kind = spec.beta, spec.smoothing, spec.name
    sigma = torch.sigmoid
    # Functions of both log-ratios; below, of the difference of scores.
    if kind in ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sft"):
        return {
            "nca_pair": lambda: -logsigmoid(b * c) - (logsigmoid(-b * c) + logsigmoid(-b * r)) / 2,
            "bco_pair": lambda: -logsigmoid(b * c - delta) - logsigmoid(delta - b * r),
            "sppo_hard": lambda: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
            "apo_zero": lambda: 1 - sigma(b * c) + sigma(b * r),
            "apo_down": lambda: sigma(b * c) + 1 - sigma(b * (c - r)),
            "sft": lambda: -c,
        }[kind]()
    if kind == "orpo":
        if not spec.average:
            c, r = c / n_c, r / n_r
        odds_c, odds_r = (torch.exp(x) / (1 - torch.exp(x)) for x in (c, r))
        return -c - b * logsigmoid(torch.log(odds_c / odds_r))
    h_c, h_r = score(spec, c), score(spec, r)
    if kind in PER_TOKEN and not spec.average:
        h_c, h_r = h_c / n_c, h_r / n_r
    h = h_c - h_r
    x = b * h
    if kind == "robust":
        return ((1 - eps) * -logsigmoid(x) - eps * -logsigmoid(-x)) / (1 - 2 * eps)
    if kind == "exo_pair":
        q = torch.stack([sigma(x), sigma(-x)])
        p = torch.tensor([1 - eps, eps], dtype=q.dtype, device=q.device)
        return (q * (q.log() - p.log())).sum()
    if kind == "discopop":
        gate = sigma(x / spec.tau)
        return (1 - gate) * -logsigmoid(x) + gate * torch.exp(-x)
    if kind == "hinge":
        return torch.relu(1 - x)
    if kind == "ipo":
        return (h - 1 / (2 * b)) ** 2
    return cross(x - spec.simpo_margin if kind == "simpo" else x, eps)


def preference_reference(
    logps: Tensor, index: Tensor | None, weights: Tensor | None, ref_logps: Tensor | None, responses: Tensor,
    pairs: Tensor, pair_weights: Tensor | None, delta: Tensor | None, spec: PreferenceSpec,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (loss, metrics[6, P]), differentiable in logps."""
    own = logps if index is None else logps[index]
    w = torch.ones_like(own) if weights is None else weights
    ref = torch.zeros_like(own) if ref_logps is None else ref_logps

    def side(values: Tensor, begin: int, end: int, shorter: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns S, n, and S without ld_alpha."""
        span, weight = values[begin:end], w[begin:end]
        share = torch.ones_like(span)
        share[shorter:] = spec.ld_alpha
        n = weight.sum() if bool(weight.sum() != 0) else torch.ones((), dtype=w.dtype, device=w.device)
        unit = n if spec.average else 1
        return (span * weight * share).sum() / unit, n, (span * weight).sum() / unit

    # Pair by pair, unless the kind sorts over all of them.
    rows, logratios = [], []
    for p, (chosen, rejected) in enumerate(pairs.tolist()):
        spans = [(int(responses[e]), int(responses[e + 1])) for e in (chosen, rejected)]
        shorter = min(end - begin for begin, end in spans)
        (s_c, n_c, whole), (s_r, n_r, _) = (side(own, *span, shorter) for span in spans)
        ref_c, ref_r = (side(ref, *span, shorter)[0] for span in spans)
        sft = spec.sft_weight * whole / (n_c if spec.sft_average and not spec.average else 1)
        logratios.append((s_c, s_r, ref_c, ref_r, sft))
        value = s_c * 0
        if spec.name not in ("aot", "aot_unpaired"):
            value = pair_loss(spec, s_c - ref_c, s_r - ref_r, n_c, n_r, 0.0 if delta is None else delta) - sft
        if pair_weights is not None:
            value = value * pair_weights[p]
        c, r = spec.beta * (s_c - ref_c), spec.beta * (s_r - ref_r)
        rows.append(torch.stack([value, c - r, c, r, s_c, s_r]))
    if not rows:
        return logps.sum() * 0, logps.new_zeros(6, 0)
    metrics = torch.stack(rows, 1)
    if spec.name not in ("aot", "aot_unpaired"):
        return metrics[0].sum() * spec.scale, metrics.detach()
    s_c, s_r, ref_c, ref_r, sft = (torch.stack(x) for x in zip(*logratios, strict=True))
    first, second = (s_c - s_r, ref_c - ref_r) if spec.name == "aot" else (s_c - ref_c, s_r - ref_r)
    order = first.sort(stable=True)  # of equal ones, two pairs of one answer, the earlier pair comes first
    value = cross(spec.beta * (order.values - second.sort().values), spec.smoothing)
    metrics = metrics.detach().clone()
    metrics[0] = (value[order.indices.argsort()] - sft).detach()
    return (value.sum() - sft.sum()) * spec.scale, metrics
