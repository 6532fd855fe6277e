"""What a pack is believed to cost, in time. Only ratios matter: a token through the decoder's linear layers is 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfast.data.symbols import Symbols, ranges
from mmfast.packing.tree import Forest

UNIT = 4096  # costs are integers, in parts of a token, so that every machine finds the same plan


@dataclass(frozen=True, kw_only=True)
class Cost:
    attention: float = 0.0  # per (query, key) seen
    head: float = 0.0  # per scored token
    vision: float = 0.0  # per image slot, through tower and projector


def node_costs(symbols: Symbols, forest: Forest, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """int64 (tokens, cost in parts of UNIT) of each node of a forest over `symbols`; both add up over nodes."""
    at = ranges(forest.start, forest.end)
    first = np.cumsum(forest.end - forest.start) - (forest.end - forest.start)
    inside = symbols.flat[at]
    image = np.flatnonzero(inside < 0)
    length = np.ones(len(at), np.int64)
    length[image] = symbols.image_tokens[-1 - inside[image]]
    units = length * UNIT
    units[image] += np.rint(cost.vision * UNIT * length[image]).astype(np.int64)
    units[symbols.predicts[at]] += round(cost.head * UNIT)
    tokens = np.add.reduceat(length, first)
    above: list[int] = []  # tokens on the path before each node
    sizes = tokens.tolist()
    for parent in forest.parent.tolist():
        above.append(0 if parent < 0 else above[parent] + sizes[parent])
    keys = tokens * np.asarray(above, np.int64) + tokens * (tokens + 1) // 2
    attention = np.rint(cost.attention * UNIT * keys.astype(np.float64)).astype(np.int64)
    return tokens, np.add.reduceat(units, first) + attention
