"""What follows a row's last tile: the outputs from its statistics, the gradient of the input, P - Y."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.ops.head.folds import BASE, CENTER, S2, SZ, TOTAL, WRITTEN, ZY, Folds, M, S
from mmfast.ops.head.spec import HeadSpec


class Saved(NamedTuple):
    """The backward pass reads these of each row."""

    logp: Tensor
    entropy: Tensor
    lse: Tensor
    p_others: Tensor  # 1 - p_y
    slope: Tensor  # s_y / temperature


class Outcome(NamedTuple):
    """A forward pass makes these; what was not asked for has no elements."""

    logp: Tensor
    entropy: Tensor
    logsumsq: Tensor
    mean_logit: Tensor
    top1: Tensor
    lse: Tensor
    p_others: Tensor
    slope: Tensor
    row_factor: Tensor  # kept: (P - Y) = row_factor * kept
    kept: Tensor
    gradients: tuple[Tensor, ...] = ()  # d logp/dx (G) and d logp/du, then the same of the entropy

    def saved(self) -> Saved:
        return Saved(self.logp, self.entropy, self.lse, self.p_others, self.slope)


def outcome(stats: Tensor, vocab: int, spec: HeadSpec) -> Outcome:
    """Makes the outputs from the statistics over all columns."""
    m, s, zy = stats[M], stats[S], stats[ZY]
    empty = stats.new_empty(0)
    log_s = s.log()
    distance = (m - zy) + log_s  # lse of the others, seen from the target: exact however large the logits are
    logp = -torch.logaddexp(distance, torch.zeros_like(distance))
    p_others = torch.sigmoid(distance)
    lse = torch.logaddexp(m + log_s, zy)
    tanh = zy * (spec.temperature / spec.softcap) if spec.softcap else torch.zeros_like(zy)
    entropy, logsumsq = empty, empty.clone()
    if spec.entropy:
        mean_others = torch.where(s > 0, m + stats[SZ] / s, lse)
        p = logp.exp()
        entropy = p_others * (lse - mean_others) - torch.where(p > 0, p * logp, 0.0)
    if spec.squares:
        log_p_others = -torch.logaddexp(-distance, torch.zeros_like(distance))
        others = torch.where(s > 0, 2 * (log_p_others - log_s) + stats[S2].log(), -torch.inf)
        logsumsq = torch.logaddexp(2 * logp, others)
    mean_logit = stats[TOTAL] / vocab if spec.total else empty.clone()
    slope = (1 - tanh * tanh) / spec.temperature
    return Outcome(logp, entropy, logsumsq, mean_logit, zy >= m, lse, p_others, slope, empty.clone(), empty.clone())


def finish_kept(
    kept: Tensor,
    bases: list[Tensor],
    stats: Tensor,
    out: Outcome,
    width: int,
    targets: Tensor,
    spec: HeadSpec,
    folds: Folds,
) -> Tensor:
    """Brings all tiles to the final base and put the target's entry in; returns the factor that makes it P - Y."""
    s = stats[WRITTEN]
    inverse = torch.where(s > 0, 1 / s, 0.0)
    if not len(s):
        return s.clone()
    base = torch.stack(bases, 1)
    scale = torch.where(base > -torch.inf, (base - stats[BASE, :, None]).exp(), 1.0)
    entry = -s * out.slope * spec.temperature
    if kept.dtype == torch.float16:  # s may be beyond fp16: normalise
        scale, entry, factor = scale * inverse[:, None], entry * inverse, out.p_others
    else:
        factor = out.p_others * inverse
    folds.finish(kept, scale, width, targets, entry)
    return factor / spec.temperature


def input_gradients(
    terms: list[tuple[Tensor, Tensor]],
    targets: Tensor,
    stats: Tensor,
    out: Outcome,
    sums: list[Tensor],
    entropy_sums: list[Tensor],
    spec: HeadSpec,
) -> tuple[Tensor, ...]:
    """Returns d logp/d input of each term of the logits, and d entropy/d input if its sums were made."""
    s = stats[WRITTEN]
    others = (out.p_others * torch.where(s > 0, 1 / s, 0.0) / spec.temperature)[:, None]
    at_target = out.slope[:, None]
    target_rows = [w[targets].to(s.dtype) for _, w in terms]
    dtype = terms[0][0].dtype
    gradients = [
        torch.addcmul(out.p_others[:, None] * at_target * w, others, g, value=-1).to(dtype)
        for w, g in zip(target_rows, sums, strict=True)
    ]
    if entropy_sums:
        p = out.logp.exp()
        p_log_p = torch.where(p > 0, p * (out.logp + out.entropy), 0.0)[:, None] * at_target
        shift = torch.where(s > 0, stats[CENTER] - out.lse + out.entropy, 0.0)[:, None]
        gradients += [
            (-(p_log_p * w + others * (h + shift * g))).to(dtype)
            for w, g, h in zip(target_rows, sums, entropy_sums, strict=True)
        ]
    return tuple(gradients)
