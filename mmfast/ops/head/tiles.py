"""The head's algorithm: one loop over vocabulary tiles, shared by all backends (folds.py is what differs).

With c_t = dL/dlogp_t, d logp_t/dx_t = G_t = (1 - p_y) (s_y W_y - sum over v != y of q_v s_v W_v) / temperature, where
q = softmax over the columns other than the target's. G does not depend on the loss, so it can be made in the forward
pass, while each tile of exponentials is still in cache, and dX_t = c_t G_t.

path        for                                   forward keeps                          GEMM passes
stats       nothing needs a gradient              nothing                                1
direct      only the input needs one              G (and d entropy/dx)                   2 (3)
kept        the head too, E fits keep_budget      G, E = e^(z - base), compute dtype     3
recompute   the head too, E does not fit,         log-sum-exp                            4
            or the entropy needs a gradient
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.ops.head.folds import STATS, Folds, Tile, Written
from mmfast.ops.head.outcome import ENTRY, Kernels, Outcome, input_gradients
from mmfast.ops.head.spec import HeadSpec, compute_dtype, padded
from mmfast.ops.rows import accumulator

ROW_BLOCK = 8192


class Head(NamedTuple):
    """The tensors of one call, those that may need a gradient first. Logits are x W^T + u B^T + bias (LoRA: u, B)."""

    x: Tensor  # [U,D]
    u: Tensor | None  # [U,r]
    weight: Tensor  # [V,D]
    b: Tensor | None  # [V,r]
    bias: Tensor | None  # [V]
    targets: Tensor  # [U]

    def dense(self) -> Head:
        """Makes all contiguous: kernels take addresses."""
        return Head(*(None if t is None else t.contiguous() for t in self))  # type: ignore[arg-type]

    def cut(self, rows: slice) -> Head:
        u = None if self.u is None else self.u[rows]
        return self._replace(x=self.x[rows], u=u, targets=self.targets[rows])

    def terms(self) -> list[tuple[Tensor, Tensor]]:
        """Lists (input [U,*], matrix [V,*]) of each term of the logits."""
        terms = [(self.x, self.weight)]
        if self.u is not None and self.b is not None:
            terms.append((self.u, self.b))
        return terms

    def tile(self, folds: Folds, start: int, out: Tensor) -> Tile:
        """Makes the logits of the columns from `start` on, as many as `out` has."""
        stop = start + out.shape[1]
        for i, (x, w) in enumerate(self.terms()):
            folds.product(x, w[start:stop].T, out, accumulate=i > 0)
        bias = None if self.bias is None else self.bias[start:stop].to(accumulator(self.x.dtype))
        return Tile(out, bias, self.targets, start)


def forward(head: Head, spec: HeadSpec, folds: Kernels) -> Outcome:
    rows, vocab = head.x.shape[0], head.weight.shape[0]
    kept = None
    if spec.path(head.x, vocab) == "kept":
        kept = head.x.new_empty(rows, padded(vocab), dtype=compute_dtype(head.x))[:, :vocab]
    if rows <= ROW_BLOCK:
        return _forward_block(head, spec, folds, kept)
    blocks = []
    for start in range(0, rows, ROW_BLOCK):
        block = slice(start, min(start + ROW_BLOCK, rows))
        blocks.append(_forward_block(head.cut(block), spec, folds, None if kept is None else kept[block]))
    told, numbers = (torch.cat(parts, -1) for parts in zip(*(block[:2] for block in blocks), strict=True))
    gradients = [torch.cat(parts) for parts in zip(*(block.gradients for block in blocks), strict=True)]
    return Outcome(told, numbers, kept, gradients)


def _forward_block(head: Head, spec: HeadSpec, folds: Kernels, kept: Tensor | None) -> Outcome:
    x = head.x
    rows, vocab = x.shape[0], head.weight.shape[0]
    acc, store = accumulator(x.dtype), compute_dtype(x)
    # Logits may be made where E is kept: then no tile needs memory, so tiles need not be many.
    in_place = kept is not None and kept.dtype == acc
    width = spec.tile_width(rows, vocab, budgets=4 if in_place else 1)
    want_g = spec.input_grad and (kept is not None or not spec.head_grad)
    want_entropy = want_g and spec.entropy_grad

    # Buffers of one tile (logits, E, E (z - center)), the running statistics, and the sums of E W over the tiles.
    def buffer(want: bool, dtype: torch.dtype) -> Tensor | None:
        return x.new_empty(rows, padded(width), dtype=dtype) if want else None

    logits = buffer(not in_place, acc)
    e_buffer = buffer(want_g and kept is None and store != acc, store)
    z_buffer = buffer(want_entropy, store)
    stats = x.new_empty(STATS, rows, dtype=acc)
    sums, (g_sums, entropy_sums) = _sums(head, want_g + want_entropy)
    bases = None if kept is None else x.new_empty(-(-vocab // width), rows, dtype=acc)
    for k, start in enumerate(range(0, vocab if rows else 0, width)):
        stop = min(start + width, vocab)
        kept_tile = None if kept is None else kept[:, start:stop]
        tile = kept_tile if logits is None else logits[:, : stop - start]
        assert tile is not None
        probs = kept_tile
        if kept_tile is None and want_g:
            probs = tile if e_buffer is None else e_buffer[:, : stop - start]
        probs_z = None if z_buffer is None else z_buffer[:, : stop - start]
        to = Written(probs, probs_z, sums if start > 0 else None, None if bases is None else bases[k])
        folds.forward(head.tile(folds, start, tile), stats, spec, to)
        # E of this tile times its rows of W, on top of what the fold has brought to this tile's base.
        for tensors, e in ((g_sums, probs), (entropy_sums, probs_z)):
            for g, (_, w) in zip(tensors, head.terms(), strict=bool(tensors)):
                assert e is not None
                folds.product(e, w[start:stop].to(e.dtype), g, accumulate=start > 0)
    told, numbers = folds.outcome(stats, bases, vocab, spec, kept is not None or want_g, store == torch.float16)
    if kept is not None and bases is not None and rows:
        folds.finish(kept, bases, width, head.targets, numbers[ENTRY])
    gradients = input_gradients(folds, head.terms(), head.targets, numbers, g_sums, entropy_sums) if want_g else []
    return Outcome(told, numbers, kept, gradients)


def _sums(head: Head, kinds: int) -> tuple[Tensor | None, tuple[list[Tensor], list[Tensor]]]:
    """Makes room for the sums of E W (and of E (z - center) W, if `kinds` is 2) of each term: one tensor, which the
    folds bring to another base in one go, and its parts."""
    if not kinds:
        return None, ([], [])
    sizes = [padded(w.shape[1]) for _, w in head.terms()]
    whole = head.x.new_empty(head.x.shape[0], kinds * sum(sizes), dtype=accumulator(head.x.dtype))
    parts = [t[:, : w.shape[1]] for t, (_, w) in zip(whole.split(sizes * kinds, 1), head.terms() * kinds, strict=True)]
    return whole, (parts[: len(sizes)], parts[len(sizes) :])
