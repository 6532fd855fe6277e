"""The attention of a decode step: one token a row against the tree nodes above it and the pages of its own tokens.

Keys and values stand in stacks, [N, Hkv, L, Dh] a layer: tree nodes of similar lengths, and the pool of pages. A node
is read once for all rows under it, whatever their number; nothing shared is copied. Each part of a row's path gives its
scores' maximum, the sum of its weights, and the weighted values; put together they are one softmax over the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mmfast.models.attention import CannotShare

NAME = "mmfast_decode"
PAGE = 32  # tokens
LEAST = 4  # rows of a GEMM: from here on a row's bits do not depend on its mates
HIDDEN = -1e30  # the score of what a row does not see; finite, so that a part without a visible key has no NaN
NOTHING = 2 * HIDDEN  # below any score: the part of a row's path that is not there


def spare(rows: int) -> int:
    """How many empty rows a step runs beside these. Several threads share the rows out, and a thread with fewer than
    LEAST of them, or with some over, rounds these few in another way."""
    return -rows % LEAST if torch.get_num_threads() > 1 else max(LEAST - rows, 0)


@dataclass(eq=False)
class Stack:
    keys: list[Tensor]  # [N,Hkv,L,Dh] of each layer
    values: list[Tensor]
    lengths: Tensor  # int64[N], of the L places
    starts: Tensor  # int64[N]: how many tokens of its path stand before
    rows: Tensor  # int64[N,m], the rows that look at each; where there are fewer, row 0, whose result nobody reads
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # of each window, [N,1,m or 1,1,L]

    @property
    def tokens(self) -> int:
        return self.keys[0].shape[0] * self.keys[0].shape[2]

    def mask(self, window: int | None, ordinals: Tensor) -> Tensor:
        """0 where a row sees a key, else HIDDEN. Without a window it holds as long as the lengths do."""
        if window not in self.masks:
            at = torch.arange(self.keys[0].shape[2], device=self.lengths.device)
            seen = (at < self.lengths[:, None])[:, None]
            if window is not None:
                seen = seen & (ordinals[self.rows][..., None] - (self.starts[:, None] + at)[:, None] < window)
            self.masks[window] = torch.where(seen, 0.0, HIDDEN)[:, None, :, None]
        return self.masks[window]


@dataclass(eq=False)
class Step:
    """What a decode step's attention must know; it travels where a pack's Tree does."""

    nodes: Sequence[Stack]
    pages: Stack  # of the pool, as far as it is in use
    parts: Tensor  # int64[R,S]: each row's parts, counted through all stacks' `rows`; the last number: no part
    page: Tensor  # int64[R], where this step's keys and values go
    offset: Tensor
    ordinals: Tensor  # int64[R], of this step's token in its path
    addends: tuple[Tensor, ...] = ()  # deepstack acts on prompts alone

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """[R,Hq,Dv] of query [R,Hq,Dh], key and value [R,Hkv,Dh]."""
        # This step's keys and values join their pages
        self.pages.keys[layer][self.page, :, self.offset] = key
        self.pages.values[layer][self.page, :, self.offset] = value
        # Every stack by itself
        query = query.unflatten(1, (key.shape[1], -1)) * scale
        found = [_part(s, layer, query, s.mask(window, self.ordinals)) for s in (*self.nodes, self.pages)]
        # One softmax over each row's parts
        some = found[0]
        found.append((some[0].new_full((1, *some[0].shape[1:]), NOTHING), some[1].new_ones(1, *some[1].shape[1:]),
                      some[2].new_zeros(1, *some[2].shape[1:])))  # fmt: skip
        top, total, out = (torch.cat(tensors)[self.parts] for tensors in zip(*found, strict=True))  # [R,S,Hkv,r(,Dh)]
        share = (top - top.amax(1, keepdim=True)).exp_()
        out = (out * share[..., None]).sum(1) / (total * share).sum(1)[..., None]
        return out.to(value.dtype).flatten(1, 2)


def attend(
    module: nn.Module,
    query: Tensor,  # [R,Hq,1,Dh]
    key: Tensor,  # [R,Hkv,1,Dh]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Any = None,  # Step, or Pieces (pieces.py)
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if softcap is not None or s_aux is not None:
        raise CannotShare("its attention caps its scores (softcap) or has sink logits")
    assert tree is not None and query.shape[2] == 1, query.shape
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return tree.attend(layer, query[:, :, 0], key[:, :, 0], value[:, :, 0], scale, sliding_window)[:, None], None


def _part(stack: Stack, layer: int, query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(maximum [N*m,Hkv,r], sum of weights, weighted values [N*m,Hkv,r,Dh]) of the rows of one stack."""
    keys, values = stack.keys[layer], stack.values[layer]
    n, groups, length, _ = keys.shape
    m, r = stack.rows.shape[1], query.shape[2]
    mine = query[stack.rows].transpose(1, 2).reshape(n * groups, m * r, -1)
    scores = torch.bmm(mine, keys.flatten(0, 1).transpose(1, 2)).float().view(n, groups, m, r, length) + mask
    top = scores.amax(-1)
    weights = scores.sub_(top[..., None]).exp_()
    out = torch.bmm(weights.to(values.dtype).view(n * groups, m * r, length), values.flatten(0, 1))
    return (
        top.transpose(1, 2).flatten(0, 1),
        weights.sum(-1).transpose(1, 2).flatten(0, 1),
        out.float().view(n, groups, m, r, -1).transpose(1, 2).flatten(0, 1),
    )


AttentionInterface.register(NAME, attend)
