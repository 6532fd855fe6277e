"""`mmfast plan`'s memory estimate against the measured peak: python -m bench.memory [--write]

A 64M-parameter LLaVA (hidden 512, 8 layers, 32000 words, 576 image tokens) trains a few steps in a process of its own;
its `memory_gib` (peak resident memory less that before loading) stands beside the estimate. Bar: within 20% on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
BASE: dict[str, Any] = {"train.steps": 3, "train.tokens_per_pack": 16384, "parallel.activation_checkpointing": False}
RUNS: dict[str, dict[str, Any]] = {
    "4 pairs": {"train.pairs_per_step": 4},
    "4 pairs, checkpointing": {"train.pairs_per_step": 4, "parallel.activation_checkpointing": True},
    "one pair, checkpointing": {"train.pairs_per_step": 1, "parallel.activation_checkpointing": True},
    "4 pairs, 2 micro-batches": {"train.pairs_per_step": 4, "train.tokens_per_pack": 800},
    "4 pairs, LoRA": {"train.pairs_per_step": 4, "model.lora": {"r": 16, "alpha": 32}},
}


def one(folder: Path, name: str) -> dict:
    import mmfast.train
    import mmfast.training.forecast
    from tests.make.tiny_run import make_config, write_pairs

    config = make_config(folder, folder / "model", write_pairs(folder, 8), **BASE | RUNS[name])
    planned = mmfast.training.forecast.plan(config)
    measured = mmfast.train.train(config)["memory_gib"]
    memory = planned.as_dict()["memory"]
    parts = {part: round(size / 2**30, 4) for part, size in memory.items()}
    return {
        "what": name,
        "estimate_gib": parts.pop("total"),
        "measured_gib": round(measured, 4),
        "ratio": round(memory["total"] / 2**30 / measured, 3),
        "parts_gib": parts,
        "largest_pack": planned.largest_pack,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"append the rows to {RESULTS.name}")
    parser.add_argument("--only", choices=RUNS, help="one of the runs")
    parser.add_argument("--inside", nargs=2, metavar=("FOLDER", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print("ROW " + json.dumps(one(Path(arguments.inside[0]), arguments.inside[1])))
        return
    import numpy
    import torch

    from bench.packing import cpu_name
    from mmfast.world.models import tiny_model

    common = {
        "command": "python -m bench.memory",
        "date": str(date.today()),
        "device": cpu_name(),
        "versions": {"torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()},
    }
    for name in [arguments.only] if arguments.only else RUNS:
        with tempfile.TemporaryDirectory() as folder:
            tiny_model("llava", Path(folder) / "model", size="bench")
            command = [sys.executable, "-m", "bench.memory", "--inside", folder, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ROW "))[4:])
        print(row, flush=True)
        if arguments.write:
            with RESULTS.open("a") as file:
                file.write(json.dumps(row | common) + "\n")


if __name__ == "__main__":
    main()
