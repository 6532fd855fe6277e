"""What a data set is like, before a step is spent on it: counts, lengths, duplicates, problems, what a tree saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from mmfast.data.store import ExampleStore
from mmfast.data.symbols import Symbols
from mmfast.files import offsets_of
from mmfast.packing.order import blocks, groups
from mmfast.packing.tree import prefix_forest


def examine(store: ExampleStore) -> dict[str, Any]:
    """Everything `mmfast data check` prints, as data."""
    symbols = store.symbols
    scored = np.diff(symbols.scored_bounds)
    chosen, rejected = symbols.branch_of.T
    sides = {"chosen": chosen, "rejected": rejected[rejected >= 0]}
    texts = [symbols.flat[a:b].tobytes() for a, b in pairwise(symbols.bounds.tolist())]
    report = store.report
    return {
        "format": ", ".join(dict.fromkeys(store.manifest["formats"])),
        "rows": report.rows,
        "examples": len(store),
        "pairs": int((rejected >= 0).sum()),
        "images": len(store.images),
        "dropped": dict(Counter(p.kind for p in report.dropped)),
        "noted": dict(Counter(p.kind for p in report.notes)),
        "columns kept in meta and not used (rows)": dict(report.unused),
        "lengths": {k: histogram(symbols.unshared[v]) for k, v in sides.items() if len(v)},
        "response tokens (mean)": {k: float(scored[v].mean()) for k, v in sides.items() if len(v)},
        "equal examples": repeats(b"|".join(texts[b] for b in both if b >= 0) for both in symbols.branch_of),
        "repeated ids": repeats(symbols.name(e)[0] for e in range(len(symbols))),
        **sharing(symbols),
    }


def sharing(symbols: Symbols) -> dict[str, Any]:
    """Tokens a step would run: sides apart, prompts shared within a pair, and everything of one group shared."""
    sizes = np.ones(len(symbols.flat), np.int64)
    images = symbols.flat < 0
    sizes[images] = symbols.image_tokens[-1 - symbols.flat[images]]
    before = offsets_of(sizes)  # tokens that stand before each symbol

    def distinct(examples: np.ndarray) -> int:
        branches = symbols.branch_of[examples].reshape(-1)
        branches = branches[branches >= 0]
        forest = prefix_forest(symbols.flat, symbols.bounds[branches], symbols.bounds[branches + 1])
        return int((before[forest.end] - before[forest.start]).sum())

    members = blocks(groups(symbols), len(symbols.branch_of))
    by_size: Counter[str] = Counter()
    for n in map(len, members):
        by_size["1" if n == 1 else "2-4" if n <= 4 else "5-8" if n <= 8 else "over 8"] += n
    separate = int(symbols.unshared[symbols.branch_of[symbols.branch_of >= 0]].sum())
    pair = sum(distinct(example) for example in np.arange(len(symbols.branch_of))[:, None])
    group = sum(map(distinct, members))
    return {
        "pairs by size of their group": {k: by_size[k] for k in ("1", "2-4", "5-8", "over 8") if by_size[k]},
        "tokens, sides apart": separate,
        "tokens, prompts shared in a pair": pair,
        "tokens, everything shared in a group": group,
        "saved": f"{1 - pair / separate:.0%} in isolated pairs, up to {1 - group / separate:.0%} in whole groups",
    }


def repeats(values: Iterable[Hashable]) -> int:
    """The number of values that are equal to an earlier one."""
    return sum(n - 1 for n in Counter(values).values())


def histogram(values: np.ndarray, bins: int = 8) -> list[tuple[int, int, int]]:
    """(from, to, count), equal bins over whole numbers."""
    low, high = int(values.min()), int(values.max())
    edges = np.unique(np.linspace(low, high + 1, bins + 1).astype(int))
    counts, _ = np.histogram(values, edges)
    return [(int(a), int(b) - 1, int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
