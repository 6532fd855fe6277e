"""The benchmarks, one file each: found by their BENCHES."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache

from mmfast.evals.base import Benchmark


@cache
def benches() -> dict[str, Benchmark]:
    """All of them, by name."""
    found: dict[str, Benchmark] = {}
    for file in pkgutil.iter_modules(__path__):
        for bench in importlib.import_module(f"{__name__}.{file.name}").BENCHES:
            assert bench.name not in found, f"two benchmarks are called {bench.name}"
            found[bench.name] = bench
    return dict(sorted(found.items()))


def bench(name: str) -> Benchmark:
    known = benches()
    if name not in known:
        near = get_close_matches(name.lower(), known, 1)
        raise ValueError(
            f"there is no benchmark {name}"
            + (f": did you mean {near[0]}?" if near else f" (there are {', '.join(known)})")
        )
    return known[name]
