"""The seam between the head's loop over vocabulary tiles (head.py, shared) and the backends, which differ only here.

Letters: U rows (target tokens), V vocabulary, v the columns of one tile, y a row's target, z a mapped logit
(after bias, softcap and temperature), s_v = 1 - tanh^2 the softcap's slope (1 without softcap; the constant
1/temperature is applied by head.py).

The target's column stands apart: sums run over the other columns, relative to their running maximum m. Then
    lse_others = m + log s,  logp = -log(1 + e^(lse_others - z_y)),  1 - p_y = sigmoid(lse_others - z_y)
are exact for confident tokens too, where 1 - p_y taken from a rounded p_y would be all error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmfast.ops.head.gemm import torch_product
from mmfast.ops.oracles.head import map_logits

# Rows of the running statistics, one contiguous [STATS, U] tensor (float32; float64 for float64 inputs).
M = 0  # maximum of the other columns seen so far, -inf at first
S = 1  # sum of e^(z - m) over the others
ZY = 2  # the target's mapped logit, set by the tile that holds it
SZ = 3  # sum of e^(z - m) (z - m) over the others; kept if spec.entropy
S2 = 4  # sum of e^(2 (z - m)) over the others; kept if spec.squares
TOTAL = 5  # sum of z over all columns, the target's too; kept if spec.total
CENTER = 6  # a row's weighted mean logit in its first tile; set if probs_z is asked for
FACTOR = 7  # written by every tile: e^(m_before - m_after), what sums from earlier tiles are multiplied by
STATS = 8


@dataclass(frozen=True)
class FoldSpec:
    softcap: float | None
    temperature: float
    entropy: bool = False
    squares: bool = False
    total: bool = False


class Folds(Protocol):
    """What a backend supplies. Every tensor is on its device; tiles may have a row stride (never a column stride)."""

    low_precision_tiles: bool  # tiles may also be bf16 or fp16; a tile is overwritten only where it is an output too

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """out = a b or out += a b, accumulated in fp32; out is fp32 or of a's dtype. a, b may be transposed views."""

    def forward(
        self,
        tile: Tensor,  # [U,v] raw logits, fp32 (fp64); scratch: the fold may overwrite it
        bias: Tensor | None,  # [v] of the tile's dtype
        targets: Tensor,  # int64 [U]
        first: int,  # the tile's first column in the vocabulary
        stats: Tensor,  # [STATS,U], updated
        spec: FoldSpec,
        probs: Tensor | None,  # [U,v], out: E = s_v e^(z - m), target entry 0. May be the tile itself
        probs_z: Tensor | None,  # [U,v], out: E (z - center), target entry 0. Never the tile
    ) -> None:
        """Fold one tile into the statistics and write its exponentials relative to the maximum after this tile."""

    def gradient(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        lse: Tensor,  # [U], over all columns
        a: Tensor,  # [U]
        b: Tensor | None,  # [U]; None: zero
        d: Tensor,  # [U]
        spec: FoldSpec,
        out: Tensor,  # [U,v]; may be the tile itself
    ) -> None:
        """out = s_v e^(z - lse) (a + b (z - lse)); the target's entry is d (its slope is in d already)."""

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        """acc[t] *= factor[t]; acc is [U,D] fp32 (fp64). Most factors are 1."""

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        """kept[t, v] *= scale[t, v // width] (most are 1), then kept[t, y_t] = entry[t]. kept is [U,V]."""


def target_columns(targets: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """(whether a row's target lies in this tile [U], its column clamped into the tile [U,1])."""
    local = targets - first
    return (local >= 0) & (local < width), local.clamp(0, width - 1)[:, None]


def _mapped(tile: Tensor, bias: Tensor | None, spec: FoldSpec) -> Tensor:
    return map_logits(tile if bias is None else tile + bias, spec.softcap, spec.temperature)


def _slope(z: Tensor, spec: FoldSpec) -> Tensor | float:
    return 1.0 if spec.softcap is None else 1 - (z * (spec.temperature / spec.softcap)) ** 2


class TorchFolds:
    """Line by line what the native folds do, in torch."""

    low_precision_tiles = False

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        torch_product(a, b, out, accumulate)

    def forward(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        stats: Tensor,
        spec: FoldSpec,
        probs: Tensor | None,
        probs_z: Tensor | None,
    ) -> None:
        z = _mapped(tile, bias, spec)
        here, column = target_columns(targets, first, tile.shape[1])
        if spec.total:
            stats[TOTAL] += z.sum(1)
        stats[ZY] = torch.where(here, z.gather(1, column)[:, 0], stats[ZY])
        is_target = here[:, None] & (torch.arange(tile.shape[1], device=tile.device) == column)
        others = z.masked_fill(is_target, -torch.inf)

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
        stats[S] = factor * stats[S] + e.sum(1)
        stats[M] = m
        stats[FACTOR] = factor
        weighted = e * _slope(torch.where(e > 0, others, 0.0), spec)
        if probs_z is not None:
            mean = base + torch.where(stats[S] > 0, (e * offset).sum(1) / stats[S], 0.0)
            stats[CENTER] = torch.where(before > -torch.inf, stats[CENTER], mean)
            probs_z.copy_(weighted * (offset + (base - stats[CENTER])[:, None]))
        if probs is not None:
            probs.copy_(weighted)

    def gradient(
        self,
        tile: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        first: int,
        lse: Tensor,
        a: Tensor,
        b: Tensor | None,
        d: Tensor,
        spec: FoldSpec,
        out: Tensor,
    ) -> None:
        z = _mapped(tile, bias, spec)
        here, column = target_columns(targets, first, tile.shape[1])
        logp = z - lse[:, None]
        p = logp.exp()
        coefficient = a[:, None] if b is None else a[:, None] + b[:, None] * torch.where(p > 0, logp, 0.0)
        g = p * coefficient * _slope(torch.where(p > 0, z, 0.0), spec)
        out.copy_(g.scatter(1, column, torch.where(here[:, None], d[:, None], g.gather(1, column))))

    def rescale(self, acc: Tensor, factor: Tensor) -> None:
        acc.mul_(factor[:, None])

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        for k in range(scale.shape[1]):
            kept[:, k * width : (k + 1) * width].mul_(scale[:, k, None])
        kept.scatter_(1, targets[:, None], entry[:, None].to(kept.dtype))


def _torch() -> Folds:
    return TorchFolds()


def _cpu() -> Folds:
    from mmfast.ops.head.folds_cpu import CpuFolds

    return CpuFolds()


def _cuda() -> Folds:
    from mmfast.ops.head.folds_device import CudaFolds

    return CudaFolds()


def _triton() -> Folds:
    from mmfast.ops.head.folds_device import TritonFolds

    return TritonFolds()


# Backend -> its folds, imported when first used. What a backend cannot take is said in logprob.py (_unsupported).
FOLDS: dict[str, Callable[[], Folds]] = {"torch": _torch, "cpu": _cpu, "cuda": _cuda, "triton": _triton}


def folds_of(backend: str) -> Folds:
    return FOLDS[backend]()
