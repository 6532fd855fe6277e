"""The gradients of a trained head: from what the forward pass kept, or by making each tile of logits again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.ops.head.folds import Folds
from mmfast.ops.head.outcome import Saved
from mmfast.ops.head.spec import HeadSpec, compute_dtype, padded
from mmfast.ops.head.tiles import Head
from mmfast.ops.rows import accumulator


def slopes_of(c: Tensor | None, h: Tensor | None, saved: Saved, spec: HeadSpec) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns (a, b, d) of Folds.gradient, from c = dL/dlogp and h = dL/dentropy; None is zero."""
    c = torch.zeros_like(saved.logp) if c is None else c
    a, d = -c, c * saved.p_others * saved.slope
    if h is None:
        return a / spec.temperature, None, d
    p = saved.logp.exp()
    a = a - h * saved.entropy
    d = d - h * saved.slope * torch.where(p > 0, p * (saved.logp + saved.entropy), 0.0)
    return a / spec.temperature, -h / spec.temperature, d


@dataclass
class HeadGradients:
    """The gradients of weight, B and bias where wanted: written once each, or added to in fp32, chunk after chunk."""

    weight: Tensor | None
    b: Tensor | None
    bias: Tensor | None
    add: bool  # whether to add to what is there

    @staticmethod
    def make(head: Head, wants: list[bool], add: bool = False) -> HeadGradients:
        """`wants` says for weight, B and bias whether a gradient is asked for."""
        acc = accumulator(head.x.dtype)
        make = torch.zeros_like if add or head.x.shape[0] == 0 else torch.empty_like

        def like(t: Tensor | None, want: bool, dtype: torch.dtype | None) -> Tensor | None:
            return make(t, dtype=dtype, memory_format=torch.contiguous_format) if want and t is not None else None

        dtype = acc if add else None
        weight, b = like(head.weight, wants[0], dtype), like(head.b, wants[1], dtype)
        return HeadGradients(weight, b, like(head.bias, wants[2], acc), add)

    def put(self, start: int, stop: int, transposed: Tensor, x: Tensor | None, u: Tensor | None, folds: Folds) -> None:
        """Puts rows start..stop: `transposed` [v,U] times x and u [U,*], accumulated in fp32 and rounded once."""
        for grad, right in ((self.weight, x), (self.b, u)):
            if grad is None or right is None:
                continue
            out = grad[start:stop]
            if self.add or out.dtype == transposed.dtype:
                folds.product(transposed, right, out, accumulate=self.add)
            else:
                exact = torch.empty_like(out, dtype=transposed.dtype)
                folds.product(transposed, right, exact)
                out.copy_(exact)

    def put_bias(self, start: int, stop: int, dz: Tensor, column: Tensor | None) -> None:
        if self.bias is None:
            return
        total = dz.sum(0, dtype=self.bias.dtype) if column is None else (dz.to(column.dtype) * column).sum(0)
        if self.add:
            self.bias[start:stop] += total
        else:
            self.bias[start:stop] = total

    def results(self, head: Head) -> list[Tensor]:
        """Returns those of weight, B and bias in their dtypes; what was not wanted has no elements."""
        pairs = zip((self.weight, self.b, self.bias), (head.weight, head.b, head.bias), strict=True)
        return [head.x.new_empty(0) if g is None or t is None else g.to(t.dtype) for g, t in pairs]


def from_kept(
    head: Head, kept: Tensor, coefficient: Tensor, gradients: HeadGradients, spec: HeadSpec, folds: Folds
) -> None:
    """Makes kept^T diag(coefficient) X: one GEMM where the result needs no buffer, else one a tile."""
    column = coefficient[:, None]
    x = (head.x * column).to(kept.dtype) if gradients.weight is not None else None
    u = (head.u * column).to(kept.dtype) if gradients.b is not None and head.u is not None else None
    rows, vocab = kept.shape
    direct = not gradients.add and gradients.bias is None and head.x.dtype == kept.dtype
    width = vocab if direct else spec.tile_width(rows, vocab)
    for start in range(0, vocab if rows else 0, width):
        stop = min(start + width, vocab)
        gradients.put(start, stop, kept[:, start:stop].T, x, u, folds)
        gradients.put_bias(start, stop, kept[:, start:stop], column)


def by_recomputing(
    head: Head,
    lse: Tensor,
    slopes: tuple[Tensor, Tensor | None, Tensor],
    gradients: HeadGradients,
    spec: HeadSpec,
    folds: Folds,
) -> list[Tensor]:
    """Makes each tile of logits again, overwrites it by dL/dlogits (Folds.gradient, `slopes` are its a, b and d), and
    uses it in each GEMM that needs it. Returns the gradients of x and u if spec.input_grad."""
    x, rows, vocab = head.x, head.x.shape[0], head.weight.shape[0]
    acc, store = accumulator(x.dtype), compute_dtype(x)
    sums = [x.new_zeros(rows, w.shape[1], dtype=acc) for _, w in head.terms()] if spec.input_grad else []
    right = [t.to(store) for t, _ in head.terms()]
    width = spec.tile_width(rows, vocab)
    buffer = x.new_empty(rows, padded(width), dtype=acc)
    store_buffer = buffer if store == acc else x.new_empty(rows, padded(width), dtype=store)
    for start in range(0, vocab if rows else 0, width):
        stop = min(start + width, vocab)
        tile, dz = buffer[:, : stop - start], store_buffer[:, : stop - start]
        folds.gradient(head.tile(folds, start, tile), lse, *slopes, spec, dz)
        for g, (_, w) in zip(sums, head.terms(), strict=bool(sums)):
            folds.product(dz, w[start:stop].to(store), g, accumulate=start > 0)
        gradients.put(start, stop, dz.T, right[0], right[1] if len(right) > 1 else None, folds)
        gradients.put_bias(start, stop, dz, None)
    return [g.to(x.dtype) for g in sums]
