"""The gradients of a trained head: from what the forward pass kept, or by making each tile of logits again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.ops.head.folds import Folds
from mmfast.ops.head.outcome import ENTROPY, FACTOR, LOGP, LSE, P_OTHERS, SLOPE, Kernels
from mmfast.ops.head.spec import HeadSpec, compute_dtype, padded
from mmfast.ops.head.tiles import Head
from mmfast.ops.rows import accumulator


def slopes_of(c: Tensor, h: Tensor | None, numbers: Tensor, spec: HeadSpec) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns (a, b, d) of Folds.gradient, from c = dL/dlogp and h = dL/dentropy; None is zero."""
    logp, entropy, slope = numbers[LOGP], numbers[ENTROPY], numbers[SLOPE]
    a, d = -c, c * numbers[P_OTHERS] * slope
    if h is None:
        return a / spec.temperature, None, d
    p = logp.exp()
    a = a - h * entropy
    d = d - h * slope * torch.where(p > 0, p * (logp + entropy), 0.0)
    return a / spec.temperature, -h / spec.temperature, d


@dataclass
class HeadGradients:
    """The gradients of weight, B and bias where wanted, written tile by tile."""

    weight: Tensor | None
    b: Tensor | None
    bias: Tensor | None

    @staticmethod
    def make(head: Head, wants: list[bool]) -> HeadGradients:
        """`wants` says for weight, B and bias whether a gradient is asked for."""
        make = torch.zeros_like if head.targets.shape[0] == 0 else torch.empty_like
        pairs = zip((head.weight, head.b, head.bias), wants, strict=True)
        return HeadGradients(*(make(t) if want and t is not None else None for t, want in pairs))

    def put(
        self, start: int, stop: int, dz: Tensor, inputs: Sequence[Tensor | None], folds: Folds, column: Tensor | None
    ) -> None:
        """Puts rows start..stop: dz^T [v,U] times x and u, accumulated in fp32 and rounded once, and the sum of dz for
        the bias. column [U,1]: a factor of dz that x and u hold already; None: 1."""
        for grad, right in zip((self.weight, self.b), inputs, strict=False):
            if grad is not None and right is not None:
                out = grad[start:stop]
                exact = out if out.dtype == dz.dtype else torch.empty_like(out, dtype=dz.dtype)
                folds.product(dz.T, right, exact)
                if exact is not out:
                    out.copy_(exact)
        if self.bias is not None:
            acc = accumulator(dz.dtype)
            self.bias[start:stop] = dz.sum(0, dtype=acc) if column is None else (dz.to(acc) * column).sum(0)

    def made(self) -> list[Tensor]:
        return [g for g in (self.weight, self.b, self.bias) if g is not None]


def from_kept(
    head: Head,
    rows_of_x: Tensor | None,
    kept: Tensor,
    c: Tensor,
    numbers: Tensor,
    gradients: HeadGradients,
    spec: HeadSpec,
    kernels: Kernels,
) -> None:
    """Makes kept^T diag(c FACTOR) X[rows_of_x]: one GEMM where the result needs no buffer, else one a tile."""
    factor = numbers[FACTOR]
    wanted = ((gradients.weight, head.x), (gradients.b, head.u))
    inputs = [
        None if g is None or t is None else kernels.combine(kept.dtype, c, t, rows_of_x, scale=factor)
        for g, t in wanted
    ]
    column = None if gradients.bias is None else (c * factor)[:, None]
    rows, vocab = kept.shape
    direct = gradients.bias is None and head.x.dtype == kept.dtype
    width = vocab if direct else spec.tile_width(rows, vocab)
    for start in range(0, vocab if rows else 0, width):
        stop = min(start + width, vocab)
        gradients.put(start, stop, kept[:, start:stop], inputs, kernels, column)


def by_recomputing(
    head: Head, numbers: Tensor, c: Tensor, h: Tensor | None, gradients: HeadGradients, spec: HeadSpec, folds: Folds
) -> list[Tensor]:
    """Makes each tile of logits again, overwrites it by dL/dlogits, and uses it in each GEMM that needs it. Returns the
    gradients of x and u if spec.input_grad."""
    slopes = slopes_of(c, h, numbers, spec)
    x, rows, vocab = head.x, head.x.shape[0], head.weight.shape[0]
    acc, store = accumulator(x.dtype), compute_dtype(x)
    sums = [x.new_zeros(rows, w.shape[1], dtype=acc) for _, w in head.terms()] if spec.input_grad else []
    inputs = [t.to(store) for t, _ in head.terms()]
    width = spec.tile_width(rows, vocab)
    buffer = x.new_empty(rows, padded(width), dtype=acc)
    store_buffer = buffer if store == acc else x.new_empty(rows, padded(width), dtype=store)
    for start in range(0, vocab if rows else 0, width):
        stop = min(start + width, vocab)
        tile, dz = buffer[:, : stop - start], store_buffer[:, : stop - start]
        folds.gradient(head.tile(folds, start, tile), numbers[LSE], *slopes, spec, dz)
        for g, (_, w) in zip(sums, head.terms(), strict=bool(sums)):
            folds.product(dz, w[start:stop].to(store), g, accumulate=start > 0)
        gradients.put(start, stop, dz, inputs, folds, None)
    return [g.to(x.dtype) for g in sums]
