"""What a data set is like, before a step is spent on it: counts, lengths, duplicates, problems, what a tree saves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mmfast.data.store import ExampleStore


@dataclass(frozen=True)
class Sharing:
    """Tokens a step would run: sides apart, prompts shared within a pair, and everything of equal images shared."""

    separate: int
    pair: int
    group: int
    pairs_by_group: dict[str, int]  # size class of the group a pair is in -> pairs

    @property
    def saved_in_pairs(self) -> float:
        return 1 - self.pair / self.separate

    @property
    def saved_in_groups(self) -> float:
        return 1 - self.group / self.separate


def _sequence(store: ExampleStore, branch: int) -> np.ndarray:
    """Ids with each image told apart: placeholder -> -1 - its row in the image table."""
    symbols = store.symbols
    return np.array(symbols.flat[symbols.bounds[branch] : symbols.bounds[branch + 1]])


def _shared(store: ExampleStore, a: np.ndarray, b: np.ndarray) -> int:
    """Slots of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    same = a[: different[0] if len(different) else n]
    return len(same) + int((store.symbols.image_tokens[-1 - same[same < 0]] - 1).sum())


def _sortable(ids: np.ndarray) -> bytes:
    """Bytes in the order of the ids."""
    return (ids.astype(np.int64) + 2**31).astype(">u4").tobytes()


def sharing(store: ExampleStore) -> Sharing:
    chosen, rejected = store.symbols.branch_of.T
    branches = np.concatenate([chosen, rejected[rejected >= 0]])
    lengths = store.symbols.whole
    separate = int(lengths[branches].sum())
    sequences = {int(b): _sequence(store, int(b)) for b in np.unique(branches)}
    pair = separate - sum(
        _shared(store, sequences[int(c)], sequences[int(r)]) for c, r in zip(chosen, rejected, strict=True) if r >= 0
    )
    # A sorted list of sequences has every trie edge between neighbours.
    order = sorted(sequences, key=lambda b: _sortable(sequences[b]))
    distinct = int(lengths[list(sequences)].sum()) - sum(
        _shared(store, sequences[a], sequences[b])
        for a, b in pairwise(order)
        if _group(store, sequences[a], a) == _group(store, sequences[b], b)
    )
    groups = Counter(_group(store, sequences[int(c)], int(c)) for c in chosen)
    sizes: Counter[str] = Counter()
    for n in groups.values():
        sizes["1" if n == 1 else "2-4" if n <= 4 else "5-8" if n <= 8 else "over 8"] += n
    return Sharing(separate, pair, distinct, {k: sizes[k] for k in ("1", "2-4", "5-8", "over 8") if sizes[k]})


def _group(store: ExampleStore, ids: np.ndarray, branch: int) -> bytes:
    """Same images and same ids up to the end of the first image; without one, the same prompt."""
    images = ids[ids < 0]
    first = store.symbols.prompts[branch] - store.symbols.bounds[branch]
    end = int(np.flatnonzero(ids < 0)[0]) + 1 if len(images) else int(first)
    return ids[:end].tobytes() + b"|" + images.tobytes()


def duplicates(store: ExampleStore) -> tuple[int, int]:
    """(examples equal to an earlier one, ids that occur again)."""
    seen: Counter[bytes] = Counter()
    for c, r in store.symbols.branch_of:
        parts = [_sequence(store, int(b)).tobytes() for b in (c, r) if b >= 0]
        seen[b"|".join(parts)] += 1
    names = Counter(store.symbols.name(e)[0] for e in range(len(store)))
    return sum(n - 1 for n in seen.values()), sum(n - 1 for n in names.values())


def histogram(values: np.ndarray, bins: int = 8) -> list[tuple[int, int, int]]:
    """(from, to, count), equal bins over whole numbers."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    edges = np.unique(np.linspace(low, high + 1, bins + 1).astype(int))
    counts, _ = np.histogram(values, edges)
    return [(int(a), int(b) - 1, int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def examine(store: ExampleStore) -> dict[str, Any]:
    """Everything `mmfast data check` prints, as data."""
    lengths = store.symbols.whole
    chosen, rejected = store.symbols.branch_of.T
    sides = {"chosen": chosen, "rejected": rejected[rejected >= 0]}
    scored = np.diff(store.symbols.scored_bounds)
    shares = sharing(store)
    equal, again = duplicates(store)
    return {
        "rows": store.report.rows,
        "examples": len(store),
        "pairs": int((rejected >= 0).sum()),
        "images": len(store.images),
        "dropped": dict(Counter(p.kind for p in store.report.dropped)),
        "noted": dict(Counter(p.kind for p in store.report.notes)),
        "columns kept in meta and not used (rows)": dict(store.report.unused),
        "lengths": {k: histogram(lengths[v]) for k, v in sides.items() if len(v)},
        "response tokens (mean)": {k: float(scored[v].mean()) for k, v in sides.items() if len(v)},
        "equal examples": equal,
        "repeated ids": again,
        "pairs by size of their group": shares.pairs_by_group,
        "tokens, sides apart": shares.separate,
        "tokens, prompts shared in a pair": shares.pair,
        "tokens, everything shared in a group": shares.group,
        "saved": f"{shares.saved_in_pairs:.0%} in isolated pairs, up to {shares.saved_in_groups:.0%} in whole groups",
    }
