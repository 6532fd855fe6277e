"""The order of an epoch: which examples make a step. It knows no ranks, budgets or costs, so that two runs which
differ only in packing, micro-batches or world size take the same steps."""

from __future__ import annotations

import numpy as np

from mmfast.data.symbols import Symbols

SHUFFLES = ("groups", "pairs", "none")


def groups(symbols: Symbols) -> np.ndarray:
    """int64 group of each example, numbered by first appearance.

    A group is the examples with the same images and the same tokens up to the end of the first image; without an
    image, the same prompt.
    """
    bounds, images, first = symbols.bounds, symbols.image_at, symbols.image_bounds
    has_image = first[1:] > first[:-1]
    end = symbols.prompts.copy()
    end[has_image] = images[first[:-1][has_image]] + 1
    ids, shown = symbols.flat.data.cast("B"), symbols.flat[images].data.cast("B")
    starts, ends, first_image = (4 * bounds).tolist(), (4 * end).tolist(), (4 * first).tolist()
    numbers: dict[tuple[bytes, bytes, bytes], int] = {}
    out = []
    for c, r in symbols.branch_of.tolist():
        other = bytes(shown[first_image[r] : first_image[r + 1]]) if r >= 0 else b""
        key = (bytes(ids[starts[c] : ends[c]]), bytes(shown[first_image[c] : first_image[c + 1]]), other)
        out.append(numbers.setdefault(key, len(numbers)))
    return np.asarray(out, np.int64)


def blocks(group: np.ndarray, size: int) -> list[np.ndarray]:
    """The examples of each group, in the data's order; a group above `size` is cut into blocks of at most that."""
    if len(group) == 0:
        return []
    order = np.argsort(group, kind="stable")
    whole = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [g[i : i + size] for g in whole for i in range(0, len(g), size)]


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation fixed by (n, seed, epoch) for good: no library's generator is in it."""
    with np.errstate(over="ignore"):
        start = _mix(_mix(np.asarray([seed], np.int64).astype(np.uint64)) + np.uint64(epoch))
        keys = _mix(start + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.argsort(keys, kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(cut: list[np.ndarray], count: int, shuffle: str, seed: int, epoch: int) -> np.ndarray:
    """All examples in the order of one epoch; `cut` are the blocks. "none" keeps the data's own order."""
    if shuffle == "none":
        return np.arange(count)
    if shuffle == "pairs":
        return permutation(count, seed, epoch)
    return np.concatenate([cut[b] for b in permutation(len(cut), seed, epoch)]) if cut else np.empty(0, np.int64)
