"""The papers in miniature over several seeds: rows in results/papers.jsonl, and the docs' tables made of them.

python -m bench.papers --seeds 21 22 23 --write      runs what is not made yet, seed after seed
python -m bench.papers --from DIR ... --write        rows of finished seeds, wherever they were made
python -m bench.papers --table                       the tables of the docs, from the rows that are kept
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.timing import machine, write_rows
from mmfast.papers import over_seeds
from mmfast.papers.reading import read

RESULTS = Path(__file__).parent / "results" / "papers.jsonl"
SEEDS = [21, 22, 23]  # nobody looked at them while anything was chosen


def rows(folder: str | Path) -> list[dict[str, Any]]:
    """A finished seed's rows. The machine is the one that the seed was made on, as its driver wrote it down."""
    told = read(folder).told
    here = {key: value for key, value in machine().items() if key in ("date", "command")}
    common = {"op": "papers", "shape": f"seed {told.seed}", "world_commit": told.world_commit}
    return [common | row | here | told.machine for row in over_seeds.rows(folder)]


def kept() -> list[dict[str, Any]]:
    """The rows in results/papers.jsonl, of one world alone."""
    if not RESULTS.exists():
        raise ValueError(f"{RESULTS} is not there: `python -m bench.papers --write` makes it")
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    worlds = {row["world_commit"] for row in found}
    if len(worlds) > 1:
        raise ValueError(f"{RESULTS} has rows of several worlds, {', '.join(sorted(worlds))}: they share no table")
    return found


def docs(found: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/papers-world.md."""
    return over_seeds.markdown(over_seeds.summed(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", default="runs/papers")
    parser.add_argument("--workers", type=int, default=0, help="0: one a core, at most 4")
    parser.add_argument("--from", dest="folders", nargs="+", metavar="DIR", help="finished seeds; nothing is run")
    parser.add_argument("--write", action="store_true", help="append to bench/results/papers.jsonl")
    parser.add_argument("--table", action="store_true", help="print the docs' tables of the kept rows, and stop")
    given = parser.parse_args()
    if given.table:
        print(docs(kept()))
        return
    # Each seed is written as soon as it is made
    made = []
    for folder in given.folders or (run(seed, given.out, given.workers) for seed in given.seeds):
        found = rows(folder)
        made += found
        if given.write:
            write_rows(RESULTS, found)
    for table in over_seeds.tables(over_seeds.summed(made)):
        Console().print(table)


def run(seed: int, out: str, workers: int) -> Path:
    """The seed's folder, made or finished."""
    from mmfast.papers.run import papers

    papers(out, seed=seed, workers=workers, console=Console())
    return Path(out) / f"seed-{seed}"


if __name__ == "__main__":
    main()
