"""The demo over several seeds: hallucination before and after alignment, as rows in results/world.jsonl.

python -m bench.world --seeds 0 1 2 --write
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.timing import machine, write_rows
from mmfast.demo import NAMES, demo, layout


def rows(seed: int, out: str, processes: int) -> list[dict]:
    """One row a model: the base model, and what DPO and DDPO made of it."""
    scores = demo(out, seed=seed, processes=processes)
    count, threads = layout(processes)
    base = scores["base"]
    found = []
    for name in NAMES:
        one = scores[name]
        row = {"op": "demo", "peer": name, "shape": f"seed {seed}", "processes": count, "threads_each": threads}
        row |= one.as_dict()
        if name != "base":
            row |= {"chair_s_fell_by": 1 - one.chair_s / base.chair_s, "recall_lost": base.recall - one.recall}
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="append to bench/results/world.jsonl")
    given = parser.parse_args()
    for seed in given.seeds:
        made = rows(seed, given.out, given.processes)
        for row in made:
            print(row)
        if given.write:
            write_rows(Path(__file__).parent / "results" / "world.jsonl", [row | machine() for row in made])


if __name__ == "__main__":
    main()
