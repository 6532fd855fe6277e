"""The seam between the head's loop over vocabulary tiles (tiles.py, shared) and the backends
(backends.py), which differ only here, and the folds in torch.

Letters: U rows (target tokens), V vocabulary, v the columns of one tile, y a row's target, z a mapped logit
(after bias, softcap and temperature), s_v = 1 - tanh^2 the softcap's slope (1 without softcap; the constant
1/temperature is applied by tiles.py).

The target's column stands apart: sums run over the other columns, relative to their running maximum m. Then
    lse_others = m + log s,  logp = -log(1 + e^(lse_others - z_y)),  1 - p_y = sigmoid(lse_others - z_y)
are exact for confident tokens too, where 1 - p_y taken from a rounded p_y would be all error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.oracles.logprob import map_logits

# Rows of the running statistics, one [STATS, U] tensor (float32; float64 for float64 inputs). The tile with the first
# column sets them all.
M = 0  # maximum of the other columns seen so far, -inf while there is none
S = 1  # sum of e^(z - m) over the others
ZY = 2  # the target's mapped logit, set by the tile that holds it
SZ = 3  # sum of e^(z - m) (z - m) over the others; kept if spec.entropy
S2 = 4  # sum of e^(2 (z - m)) over the others; kept if spec.squares
TOTAL = 5  # sum of z over all columns, the target's too; kept if spec.total
CENTER = 6  # about the mean logit under the probabilities, fixed by a row's first tile; set if probs_z is asked for
BASE = 7  # what E is taken against: m, or on GPUs a little below (csrc/cuda/logprob.cu); kept, as WRITTEN, with probs
WRITTEN = 8  # sum of e^(z - base) over the others, as far as it shows in E, which is rounded: gradients divide by it
STATS = 9


class Tile(NamedTuple):
    """The columns first ... first + v of the logits, before bias, softcap and temperature."""

    logits: Tensor  # [U,v], fp32 (fp64); scratch: may be overwritten. Folds.low_precision_tiles: also bf16 or fp16
    bias: Tensor | None  # [v] of the accumulator's dtype
    targets: Tensor  # int64 [U], columns of the whole vocabulary
    first: int

    def target_columns(self) -> tuple[Tensor, Tensor]:
        """Returns whether a row's target lies in this tile [U], and its column clamped into the tile [U,1]."""
        width, local = self.logits.shape[1], self.targets - self.first
        return (local >= 0) & (local < width), local.clamp(0, width - 1)[:, None]


class Written(NamedTuple):
    """What a forward fold writes beside the statistics; None: not that."""

    probs: Tensor | None = None  # [U,v], out: E = s_v e^(z - base), target entry 0. May be the tile's logits
    probs_z: Tensor | None = None  # [U,v], out: E (z - center), target entry 0; beside probs. Never the tile's logits
    sums: Tensor | None = None  # [U,*]: what came of earlier tiles' E, brought to the base of this one's
    base: Tensor | None = None  # [U], out: a copy of the base, which later tiles may move


def _mapped(tile: Tile, spec: HeadSpec) -> Tensor:
    z = tile.logits if tile.bias is None else tile.logits + tile.bias
    return map_logits(z, spec.softcap or None, spec.temperature)


def _slope(z: Tensor, spec: HeadSpec) -> Tensor | float:
    return 1 - (z * (spec.temperature / spec.softcap)) ** 2 if spec.softcap else 1.0


class Folds:
    """In plain torch; the folds of other backends do the same, line by line. Every tensor is on their device; tiles may
    have a row stride (never a column stride)."""

    low_precision_tiles = False  # bf16 and fp16 tiles too (forward: where nothing is written); tiles stay as they are
    # unless they are an output too

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """out = a b or out += a b, accumulated in fp32; out is fp32 or of a's dtype. a, b may be transposed views."""
        if out.dtype != a.dtype and a.device.type != "cuda":
            a, b = a.to(out.dtype), b.to(out.dtype)  # no mixed product: rounding to bf16 would cost 5e-2 nat a token
        mixed: dict[str, Any] = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
        if accumulate:
            torch.addmm(out, a, b, **mixed, out=out)
        else:
            torch.mm(a, b, **mixed, out=out)

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, to: Written) -> None:
        """Folds one tile into the statistics. Tiles come in the order of their columns, the first one from column 0."""
        # The mapped logits, the target's, and the others.
        z = _mapped(tile, spec)
        here, column = tile.target_columns()
        if tile.first == 0:
            stats.zero_()
            stats[M] = -torch.inf
        if spec.total:
            stats[TOTAL] += z.sum(1)
        stats[ZY] = torch.where(here, z.gather(1, column)[:, 0], stats[ZY])
        is_target = here[:, None] & (torch.arange(z.shape[1], device=z.device) == column)
        others = z.masked_fill(is_target, -torch.inf)

        # The statistics, moved to the maximum after this tile.
        before = stats[M].clone()
        m = torch.maximum(before, others.amax(1))
        base = torch.where(m > -torch.inf, m, 0.0)
        drop = torch.where(before > -torch.inf, before - base, 0.0)
        factor = drop.exp()
        e = torch.exp(others - base[:, None])
        offset = torch.where(e > 0, others - base[:, None], 0.0)  # 0 * inf must be 0
        if spec.entropy:
            stats[SZ] = factor * (stats[SZ] + stats[S] * drop) + (e * offset).sum(1)
        if spec.squares:
            stats[S2] = factor**2 * stats[S2] + (e * e).sum(1)
        stats[S] = stats[WRITTEN] = factor * stats[S] + e.sum(1)
        stats[M] = stats[BASE] = m
        # What is written, against that maximum: the plain folds have no other base.
        weighted = e * _slope(torch.where(e > 0, others, 0.0), spec)
        if to.probs_z is not None:
            mean = base + torch.where(stats[S] > 0, (e * offset).sum(1) / stats[S], 0.0)
            stats[CENTER] = torch.where(before > -torch.inf, stats[CENTER], mean)
            to.probs_z.copy_(weighted * (offset + (base - stats[CENTER])[:, None]))
        if to.probs is not None:
            to.probs.copy_(weighted)
        if to.base is not None:
            to.base.copy_(m)
        if to.sums is not None:
            to.sums.mul_(factor[:, None])

    def gradient(
        self, tile: Tile, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: HeadSpec, out: Tensor
    ) -> None:
        """out = s_v e^(z - lse) (a + b (z - lse)), the target's entry d (its slope is in d already). lse, over all
        columns, a, b (None: zero) and d are [U]; out [U,v] may be the tile's logits."""
        z = _mapped(tile, spec)
        here, column = tile.target_columns()
        logp = z - lse[:, None]
        p = logp.exp()
        coefficient = a[:, None] if b is None else a[:, None] + b[:, None] * torch.where(p > 0, logp, 0.0)
        g = p * coefficient * _slope(torch.where(p > 0, z, 0.0), spec)
        out.copy_(g.scatter(1, column, torch.where(here[:, None], d[:, None], g.gather(1, column))))

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        """kept[t, v] *= scale[v // width, t] (most are 1), then kept[t, y_t] = entry[t]. scale is [tiles,U]."""
        for k in range(scale.shape[0]):
            kept[:, k * width : (k + 1) * width].mul_(scale[k, :, None])
        kept.scatter_(1, targets[:, None], entry[:, None].to(kept.dtype))
