"""The folds in plain torch and in Triton, and the table of all: which backend folds how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmfast.ops.dispatch import choose
from mmfast.ops.head.folds import BASE, CENTER, S2, SZ, TOTAL, WRITTEN, ZY, M, S, Tile, Written
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.outcome import Kernels
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.oracles.logprob import map_logits


def _mapped(tile: Tile, spec: HeadSpec) -> Tensor:
    z = tile.logits if tile.bias is None else tile.logits + tile.bias
    return map_logits(z, spec.softcap or None, spec.temperature)


def _slope(z: Tensor, spec: HeadSpec) -> Tensor | float:
    return 1 - (z * (spec.temperature / spec.softcap)) ** 2 if spec.softcap else 1.0


class TorchFolds(Kernels):
    """These do in torch, line by line, what the native folds do."""

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, to: Written) -> None:
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
        z = _mapped(tile, spec)
        here, column = tile.target_columns()
        logp = z - lse[:, None]
        p = logp.exp()
        coefficient = a[:, None] if b is None else a[:, None] + b[:, None] * torch.where(p > 0, logp, 0.0)
        g = p * coefficient * _slope(torch.where(p > 0, z, 0.0), spec)
        out.copy_(g.scatter(1, column, torch.where(here[:, None], d[:, None], g.gather(1, column))))

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        for k in range(scale.shape[0]):
            kept[:, k * width : (k + 1) * width].mul_(scale[k, :, None])
        kept.scatter_(1, targets[:, None], entry[:, None].to(kept.dtype))


class TritonFolds(Kernels):
    """The folds of kernels/logprob.py."""

    low_precision_tiles = True

    def __init__(self) -> None:
        from mmfast.kernels import logprob

        vars(self).update(forward=logprob.fold_forward, gradient=logprob.fold_gradient, finish=logprob.fold_finish)


FOLDS: dict[str, Callable[[], Kernels]] = {
    "torch": TorchFolds, "cpu": partial(NativeFolds, "cpu"), "cuda": partial(NativeFolds, "cuda"), "triton": TritonFolds
}  # fmt: skip


IN_FP32 = dict.fromkeys(FOLDS, "")
IN_FP64 = IN_FP32 | dict.fromkeys(("cuda", "triton"), "float64 runs on backend 'torch' there")


def folds_for(op: str, x: Tensor, backend: str) -> Kernels:
    """Returns the folds of one call: of `backend`, or of the first that suits where it is ""."""
    return FOLDS[choose(op, x.device, IN_FP64 if x.dtype == torch.float64 else IN_FP32, backend or None)]()
