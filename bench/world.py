"""The demo over several seeds: rows in results/world.jsonl.

python -m bench.world --seeds 11 12 13 --write
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.timing import machine, write_rows
from mmfast.demo import RUNS, demo, layout
from mmfast.evals.world import Score, change
from mmfast.job.rows import read

BESIDE = {"ddpo": "sft", "dpo_sft": "sft", "ddpo_alone": "blind", "dpo": "blind_dpo"}  # what a run must go beyond


def rows(seed: int, out: str, processes: int) -> list[dict]:
    """One row a model, one for the judge that sees no picture, one for the cost. Reward accuracies stand in them to
    show how little they say."""
    found = demo(out, seed=seed, processes=processes)
    count, threads = layout(processes)
    common = {"op": "demo", "shape": f"seed {seed}", "processes": count, "threads_each": threads}
    made = []
    for name, one in found["scores"].items():
        row = common | {"peer": name, "settings": dict(RUNS[name].settings) if name in RUNS else {}} | one.as_dict()
        row |= {"blind": name in RUNS and RUNS[name].blind}
        if name != "base":
            row["change"] = changes(found["scores"]["base"], one)
            if name in BESIDE:
                row["beyond"] = {"run": BESIDE[name]} | changes(found["scores"][BESIDE[name]], one)
            row |= reward_accuracy(Path(out) / f"seed-{seed}" / name)
        made.append(row)
    made.append(common | {"peer": "judge_without_pictures"} | found["judge_without_pictures"])
    cost = {key: found[key] for key in ("seconds", "processor_seconds", "base_reused")}
    return [*made, common | {"peer": "cost"} | cost]


def changes(before: Score, after: Score) -> dict[str, list[float]]:
    """[after - before, and its 95% interval] of CHAIR_s and recall."""
    return {share: list(change(before, after, share)) for share in ("chair_s", "recall")}


def reward_accuracy(run: Path) -> dict[str, float]:
    """On held-out pairs, at the end of the run; SFT has none."""
    key = "eval/rewards/accuracies"
    found = [row[key] for row in read(run / "metrics.jsonl") if key in row]
    return {"held_out_reward_accuracy": found[-1]} if found else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
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
