"""What follows a row's last tile: its numbers from its statistics, the gradients of the inputs, P - Y. Once a call, so
on a GPU each step is one kernel (csrc/cuda/logprob_outcome.cu)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.ops.head.folds import BASE, CENTER, S2, SZ, TOTAL, WRITTEN, ZY, Folds, M, S
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.rows import segment_backend, segment_sum

# A row's numbers, one contiguous [NUMBERS, U] tensor of the accumulator's dtype. What is not asked for is 0.
LOGP = 0
ENTROPY = 1  # if spec.entropy
LOGSUMSQ = 2  # if spec.squares
MEAN_LOGIT = 3  # if spec.total
TOP1 = 4  # 1 if no other column is above the target
LSE = 5
P_OTHERS = 6  # 1 - p_y
SLOPE = 7  # s_y / temperature
TARGET = 8  # d logp/dx = TARGET W_y + OTHERS sums
OTHERS = 9
ENTROPY_TARGET = 10  # d entropy/dx = ENTROPY_TARGET W_y + OTHERS (entropy_sums + SHIFT sums), if spec.entropy_grad
SHIFT = 11
FACTOR = 12  # Y - P = FACTOR kept, if E is kept
ENTRY = 13  # of kept, at the target
NUMBERS = 14

Terms = list[tuple[Tensor, Tensor]]  # (input [U,*], matrix [V,*]) of each term of the logits


class Outcome(NamedTuple):
    """A forward pass makes these."""

    told: Tensor  # [U] log-probs, with spec.entropy_grad [2,U] log-probs and entropies: what carries gradients
    numbers: Tensor
    kept: Tensor | None
    gradients: list[Tensor]  # d logp/dx (G) and d logp/du, then the same of the entropy


class Kernels(Folds):
    """All that a backend supplies: the folds, and what is done once a call. Here the latter in plain torch."""

    def outcome(
        self, stats: Tensor, bases: Tensor | None, vocab: int, spec: HeadSpec, e: bool, normalise: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns told and numbers. e: whether E was written, else TARGET and what follows are 0. bases [tiles,U], if E
        is kept: what each tile's exponentials are relative to; becomes what brings the tile to the last base, and with
        `normalise` to a sum of 1."""
        # The log-probs. distance: the others' log-sum-exp seen from the target, exact however large the logits are.
        m, s, zy = stats[M], stats[S], stats[ZY]
        numbers = stats.new_zeros(NUMBERS, stats.shape[1])
        log_s, zero = s.log(), torch.zeros_like(s)
        distance = (m - zy) + log_s
        logp = numbers[LOGP] = -torch.logaddexp(distance, zero)
        p_others = numbers[P_OTHERS] = torch.sigmoid(distance)
        lse = numbers[LSE] = torch.logaddexp(m + log_s, zy)
        tanh = zy * (spec.temperature / spec.softcap) if spec.softcap else zero
        slope = numbers[SLOPE] = (1 - tanh * tanh) / spec.temperature
        numbers[TOP1] = zy >= m
        # Those outputs that are asked for.
        if spec.entropy:
            p = logp.exp()
            mean_others = torch.where(s > 0, m + stats[SZ] / s, lse)
            entropy = numbers[ENTROPY] = p_others * (lse - mean_others) - torch.where(p > 0, p * logp, 0.0)
            if spec.entropy_grad and e:
                numbers[ENTROPY_TARGET] = torch.where(p > 0, -p * (logp + entropy), 0.0) * slope
                numbers[SHIFT] = torch.where(s > 0, stats[CENTER] - lse + entropy, 0.0)
        if spec.squares:
            log_p_others = -torch.logaddexp(-distance, zero)
            rest = torch.where(s > 0, 2 * (log_p_others - log_s) + stats[S2].log(), -torch.inf)
            numbers[LOGSUMSQ] = torch.logaddexp(2 * logp, rest)
        if spec.total:
            numbers[MEAN_LOGIT] = stats[TOTAL] / vocab
        # What the gradients of the inputs are made with, and P - Y. (The sum of E may be beyond fp16: normalise.)
        if e:
            written = stats[WRITTEN]
            inverse = torch.where(written > 0, 1 / written, 0.0)
            others = p_others * inverse / spec.temperature
            numbers[TARGET], numbers[OTHERS] = p_others * slope, -others
        if bases is not None:
            bases.copy_(
                torch.where(bases > -torch.inf, (bases - stats[BASE]).exp(), 1.0) * (inverse if normalise else 1.0)
            )
            numbers[FACTOR] = -p_others / spec.temperature if normalise else -others
            numbers[ENTRY] = (-written * inverse if normalise else -written) * slope * spec.temperature
        return numbers[: 2 if spec.entropy_grad else 1].clone().squeeze(0), numbers

    def combine(
        self,
        dtype: torch.dtype,
        a: Tensor,  # [U], any stride
        p: Tensor,  # [*,W]
        index: Tensor | None = None,  # int64 [U]: the rows of p; None: in order
        scale: Tensor | None = None,  # [U]
        b: Tensor | None = None,  # [U], any stride
        q: Tensor | None = None,  # [U,W]
        c: Tensor | None = None,  # [U]
        r: Tensor | None = None,  # [U,W], of q's dtype
        inverse: tuple[Tensor, Tensor] | None = None,  # of rows.invert: copies, offsets
    ) -> Tensor:
        """Returns out[t] = a[t] scale[t] p[index[t]] + b[t] (q[t] + c[t] r[t]) in `dtype`, rounded once, without what
        is not given. q and r are of the accumulator's dtype, or all three are of one. With `inverse` the rows are then
        summed, out[i] over the t that it gives for i."""
        out = (p if index is None else p[index]) * (a if scale is None else a * scale)[:, None]
        if b is not None and q is not None:
            q = q if c is None or r is None else torch.addcmul(q, c[:, None], r)
            out = torch.addcmul(out, b[:, None], q.to(out.dtype))
        out = out.to(dtype)
        return out if inverse is None else segment_sum(out, *inverse, segment_backend(out))


def input_gradients(
    kernels: Kernels, terms: Terms, targets: Tensor, numbers: Tensor, sums: list[Tensor], entropy_sums: list[Tensor]
) -> list[Tensor]:
    """Returns d logp/d input of each term of the logits, and d entropy/d input if its sums were made."""
    target, others, entropy_target, shift = numbers[TARGET : SHIFT + 1].unbind()
    dtype, matrices = terms[0][0].dtype, [w for _, w in terms]
    gradients = [kernels.combine(dtype, target, w, targets, b=others, q=g) for w, g in zip(matrices, sums, strict=True)]
    return gradients + [
        kernels.combine(dtype, entropy_target, w, targets, b=others, q=h, c=shift, r=g)
        for w, g, h in zip(matrices, sums, entropy_sums, strict=False)
    ]
