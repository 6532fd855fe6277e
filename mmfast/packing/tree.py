"""Prefix forests: sequences that begin alike, laid out so that every distinct beginning stands once.

A sequence is int32 symbols: a token id, or -(1 + k) for image k. An image is one symbol, so it is never split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmfast.ops.dispatch import native


@dataclass(frozen=True)
class Forest:
    """Nodes in depth-first order (a parent stands before its children); node i holds symbols[start[i]:end[i]]."""

    parent: np.ndarray  # int32[nodes], -1 for a root
    start: np.ndarray  # int64[nodes]
    end: np.ndarray  # int64[nodes]
    leaf: np.ndarray  # int32[branches], the node at whose end the branch ends (it may have children)


def prefix_forest(symbols: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, share: bool = True) -> Forest:
    """The forest of branches symbols[starts[b]:ends[b]], none empty.

    Siblings stand in the order of their first symbol. share=False: only wholly equal branches become one.
    """
    module = native()
    if module is None:
        return prefix_forest_plain(symbols, starts, ends, share=share)
    n = len(starts)
    symbols = np.ascontiguousarray(symbols, dtype=np.int32)
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    ends = np.ascontiguousarray(ends, dtype=np.int64)
    assert bool(np.all(ends > starts)), "an empty branch"
    parent, leaf = np.empty(2 * n, np.int32), np.empty(n, np.int32)
    start, end = np.empty(2 * n, np.int64), np.empty(2 * n, np.int64)
    nodes: int = module.prefix_forest(
        symbols.ctypes.data, starts.ctypes.data, ends.ctypes.data, n, share,
        parent.ctypes.data, start.ctypes.data, end.ctypes.data, leaf.ctypes.data,
    )  # fmt: skip
    return Forest(parent[:nodes], start[:nodes], end[:nodes], leaf)


def prefix_forest_plain(symbols: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, share: bool = True) -> Forest:
    """The plain twin of prefix_forest: a trie of single symbols whose unbranched chains are then joined."""
    # A trie of single symbols
    trie: dict = {}
    stops: dict[int, list[int]] = {}  # id of a trie dict -> branches that end there
    for b in range(len(starts)):
        level = trie
        path = [int(s) for s in symbols[starts[b] : ends[b]]]
        if not share:
            path = [(tuple(path), i, s) for i, s in enumerate(path)]  # type: ignore[misc]
        for depth, symbol in enumerate(path):
            level = level.setdefault(symbol, {"at": int(starts[b]) + depth, "below": {}})["below"]
        stops.setdefault(id(level), []).append(b)
    # Chains without a branch become one node; children in the order of their first symbols
    parent: list[int] = []
    start: list[int] = []
    end: list[int] = []
    leaf = np.empty(len(starts), np.int32)

    def order(symbol: Any) -> Any:
        return symbol if share else symbol[0]

    stack = [(trie[s], -1) for s in sorted(trie, key=order, reverse=True)]
    while stack:
        entry, above = stack.pop()
        node, below, length = len(parent), entry["below"], 1
        while len(below) == 1 and id(below) not in stops:
            below = next(iter(below.values()))["below"]
            length += 1
        parent.append(above)
        start.append(entry["at"])
        end.append(entry["at"] + length)
        leaf[stops.get(id(below), [])] = node
        stack += [(below[s], node) for s in sorted(below, key=order, reverse=True)]
    return Forest(np.asarray(parent, np.int32), np.asarray(start, np.int64), np.asarray(end, np.int64), leaf)
