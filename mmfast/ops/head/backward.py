"""The gradients of a trained head: from what the forward pass kept, or by making each tile of logits again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.ops.head.folds import Folds, FoldSpec
from mmfast.ops.head.tiles import Head, compute_dtype, tile_width
from mmfast.ops.rows import accumulator


@dataclass
class HeadGradients:
    """Of weight, B and bias where wanted. Wide ones add up chunk after chunk in fp32; else each is written once."""

    weight: Tensor | None
    b: Tensor | None
    bias: Tensor | None
    add: bool  # whether to add to what is there

    @staticmethod
    def make(head: Head, wants: tuple[bool, bool, bool], wide: bool = False) -> HeadGradients:
        acc = accumulator(head.x.dtype)
        make = torch.zeros_like if wide or head.x.shape[0] == 0 else torch.empty_like

        def like(t: Tensor | None, want: bool, dtype: torch.dtype | None) -> Tensor | None:
            return make(t, dtype=dtype, memory_format=torch.contiguous_format) if want and t is not None else None

        dtype = acc if wide else None
        weight, b = like(head.weight, wants[0], dtype), like(head.b, wants[1], dtype)
        return HeadGradients(weight, b, like(head.bias, wants[2], acc), add=wide)

    def put(self, start: int, stop: int, transposed: Tensor, x: Tensor | None, u: Tensor | None, folds: Folds) -> None:
        """Rows start..stop: `transposed` [v,U] times x and u [U,*], accumulated in fp32 and rounded once."""
        for grad, right in ((self.weight, x), (self.b, u)):
            if grad is None or right is None:
                continue
            out = grad[start:stop]
            if self.add or out.dtype == transposed.dtype:
                folds.product(transposed, right, out, accumulate=self.add)
            else:
                wide = torch.empty_like(out, dtype=transposed.dtype)
                folds.product(transposed, right, wide)
                out.copy_(wide)

    def put_bias(self, start: int, stop: int, dz: Tensor, column: Tensor | None) -> None:
        if self.bias is None:
            return
        total = dz.sum(0, dtype=self.bias.dtype) if column is None else (dz.to(column.dtype) * column).sum(0)
        if self.add:
            self.bias[start:stop] += total
        else:
            self.bias[start:stop] = total


def from_kept(
    head: Head, kept: Tensor, coefficient: Tensor, into: HeadGradients, tile_budget: int, folds: Folds
) -> None:
    """kept^T diag(coefficient) X: one GEMM where the result needs no buffer, else one a tile."""
    column = coefficient[:, None]
    x = (head.x * column).to(kept.dtype) if into.weight is not None else None
    u = (head.u * column).to(kept.dtype) if into.b is not None and head.u is not None else None
    users, vocab = kept.shape
    direct = not into.add and into.bias is None and head.x.dtype == kept.dtype
    width = vocab if direct else tile_width(users, vocab, tile_budget)
    for start in range(0, vocab if users else 0, width):
        stop = min(start + width, vocab)
        into.put(start, stop, kept[:, start:stop].T, x, u, folds)
        into.put_bias(start, stop, kept[:, start:stop], column)


def by_recomputing(
    head: Head,
    spec: FoldSpec,
    lse: Tensor,
    a: Tensor,
    b: Tensor | None,
    d: Tensor,
    into: HeadGradients,
    input_grad: bool,
    tile_budget: int,
    folds: Folds,
) -> list[Tensor]:
    """Each tile of logits again, overwritten by dL/dlogits (Folds.gradient), then used by each GEMM that needs it.
    Returns the gradients of x and u, if wanted."""
    x, users, vocab = head.x, head.x.shape[0], head.weight.shape[0]
    acc, store = accumulator(x.dtype), compute_dtype(x.dtype, x.device)
    sums = [x.new_zeros(users, w.shape[1], dtype=acc) for _, w in head.inputs()] if input_grad else []
    right = [t.to(store) for t, _ in head.inputs()]
    width = tile_width(users, vocab, tile_budget)
    buffer = x.new_empty(users * width, dtype=acc)
    store_buffer = buffer if store == acc else x.new_empty(users * width, dtype=store)
    for start in range(0, vocab if users else 0, width):
        stop = min(start + width, vocab)
        shape, size = (users, stop - start), users * (stop - start)
        tile, dz = buffer[:size].view(shape), store_buffer[:size].view(shape)
        folds.gradient(head.tile(folds, start, tile), lse, a, b, d, spec, dz)
        for g, (_, w) in zip(sums, head.inputs(), strict=bool(sums)):
            folds.product(dz, w[start:stop].to(store), g, accumulate=start > 0)
        into.put(start, stop, dz.T, right[0], right[1] if len(right) > 1 else None, folds)
        into.put_bias(start, stop, dz, None)
    return [g.to(x.dtype) for g in sums]
