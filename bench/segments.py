"""changed_segments beside Python's difflib, pair by pair."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.timing import compared
from mmfast.ops.segments import changed_flags

Row = dict[str, Any]


def text_like(r: random.Random, size: int) -> list[int]:
    return [int(3000 * r.random() ** 3) for _ in range(size)]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Edited text-like pairs of 250 tokens; times are a pair's, difflib and ours turn by turn."""
    r = random.Random(0)
    pairs = []
    for _ in range(50 if options.quick else 300):
        b = text_like(r, 250)
        a = list(b)
        for _ in range(r.randint(1, 5)):
            at = r.randrange(240)
            a[at : at + r.randint(1, 6)] = text_like(r, r.randint(1, 6))
        pairs.append((np.array(a, dtype=np.int32), np.array(b, dtype=np.int32)))
    for autojunk in (True, False):
        times: dict[str, list[float]] = {"difflib": [], "mmfast": []}
        for pair in pairs:
            for name, backend in (("difflib", "python"), ("mmfast", "cpu")):
                best = float("inf")
                for _ in range(3):
                    start = time.perf_counter()
                    changed_flags(*pair, autojunk=autojunk, backend=backend)
                    best = min(best, time.perf_counter() - start)
                times[name].append(best)
        for row in compared("changed_segments", "250 tokens", times, "difflib", mode=f"autojunk={autojunk}"):
            median = row["median_s"] / float(np.median(times["difflib"]))
            yield {**row, "x_difflib": median}
