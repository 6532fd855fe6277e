"""What a pack is believed to cost, in time. Only ratios matter: a token through the decoder's linear layers is 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfast.packing.symbols import Symbols

UNIT = 4096  # costs are integers, in parts of a token, so that every machine finds the same plan


@dataclass(frozen=True, kw_only=True)
class Cost:
    attention: float = 0.0  # per (query, key) seen
    head: float = 0.0  # per scored token
    vision: float = 0.0  # per image slot, through tower and projector

    @staticmethod
    def of_decoder(
        *, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int,
        vision_flops_per_slot: float = 0.0, head_passes: float = 1.0,
    ) -> Cost:  # fmt: skip
        """From a decoder's shape. Multiply-adds of forward; backward scales every part alike but the head, whose
        passes (2 when frozen, against 3 of a trained linear) are given as a share of a linear layer's."""
        per_layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
        linear = float(layers * per_layer)
        return Cost(
            attention=2.0 * layers * heads * head_dim / linear,
            head=head_passes * hidden * vocab / linear,
            vision=vision_flops_per_slot / 2 / linear,
        )


class NodeCosts:
    """Tokens and cost of any node of a forest over `symbols`, from running sums: costs add up over nodes."""

    def __init__(self, symbols: Symbols, cost: Cost) -> None:
        lengths = symbols.lengths()
        self.tokens_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        each = lengths.astype(np.float64)
        each += cost.head * symbols.predicts
        each += cost.vision * np.where(symbols.flat < 0, lengths, 0)
        units = np.rint(each * UNIT).astype(np.int64)
        self.fixed_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
        self.attention = cost.attention
        self.branch_starts = symbols.starts

    def of(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, cost) of nodes symbols[start:end]."""
        tokens = self.tokens_before[end] - self.tokens_before[start]
        branch = np.searchsorted(self.branch_starts, start, side="right") - 1
        depth = self.tokens_before[start] - self.tokens_before[self.branch_starts[branch]]
        keys = tokens * depth + tokens * (tokens + 1) // 2
        return tokens, self.fixed_before[end] - self.fixed_before[start] + np.rint(
            self.attention * UNIT * keys.astype(np.float64)
        ).astype(np.int64)
