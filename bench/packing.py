"""What packing costs on the host: python -m bench.packing [--examples 100000] [--write]

Rows: the forests of a whole data set, step by step, on one core (bar: 2 s for 100k examples); the plan of an epoch;
building one pack. The floor beside the forests' time is one read of every token id at memory speed (numpy's sum).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.packing import Layout, Plan, PlanSettings, build_pack
from mmfast.packing.cost import Cost
from mmfast.packing.tree import prefix_forest

RESULTS = Path(__file__).parent / "results" / "packing.jsonl"
IMAGE = 31999
LLAVA_7B = Cost.of_decoder(
    hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate=11008, vocab=32000,
    vision_flops_per_slot=6e8,
)  # fmt: skip


def llava_pairs(count: int, pairs_an_image: int, seed: int = 0) -> tuple[list[Example], dict[str, ImageInfo]]:
    """LLaVA-1.5 shapes: a 35-token system prompt, 576 slots, a 40-token question, answers of 30 to 200 tokens."""
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    images: dict[str, ImageInfo] = {}
    system = rng.integers(3, 30000, 35).tolist()
    while len(examples) < count:
        name = f"image-{len(images)}"
        images[name] = ImageInfo(id=name, source=name, width=336, height=336, tokens=576)
        prompt = [*system, IMAGE, *rng.integers(3, 30000, 40).tolist()]
        answers = []
        for _ in range(8 if pairs_an_image > 1 else 2):
            n = int(rng.integers(30, 200))
            ids = np.asarray([*prompt, *rng.integers(3, 30000, n - 1).tolist(), 2], np.int32)
            answers.append(Branch(ids=ids, images=(name,), spans=((len(prompt), len(prompt) + n),)))
        two = [(a, b) for a in range(len(answers)) for b in range(a + 1, len(answers))][:pairs_an_image]
        for a, b in two:
            name = str(len(examples))
            examples.append(Example(id=name, source=f"made:{name}", chosen=answers[a], rejected=answers[b]))
    return examples[:count], images


def best(f: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(count: int) -> list[dict]:
    layout = Layout(image_token_id=IMAGE)
    rows = []
    for pairs_an_image in (1, 4, 28):
        examples, images = llava_pairs(count, pairs_an_image)
        shape = {"examples": count, "pairs_an_image": pairs_an_image, "pairs_per_step": 128, "tokens_per_pack": 16384}
        settings = PlanSettings(pairs_per_step=128, tokens_per_pack=16384)
        start, cpu = time.perf_counter(), time.process_time()
        plan = Plan(examples, images, layout, settings, cost=LLAVA_7B)
        rows.append(
            {
                "what": "flatten and group",
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
                **shape,
            }
        )
        symbols = plan.symbols
        steps = [plan.order(0)[s * 128 : (s + 1) * 128] for s in range(plan.steps_per_epoch)]
        branches = [symbols.branch_of[s].reshape(-1) for s in steps]

        def forests(symbols=symbols, branches=branches) -> None:
            for b in branches:
                prefix_forest(symbols.flat, symbols.starts[b], symbols.ends[b])

        rows.append(
            {
                "what": "forests",
                "seconds": best(forests, 3),
                "floor_seconds": best(symbols.flat.sum, 5),
                "ids": len(symbols.flat),
                **shape,
            }
        )
        for world in (1, 8, 64):
            start = time.perf_counter()
            planned = [plan.step(0, s, world) for s in range(plan.steps_per_epoch)]
            seconds = time.perf_counter() - start
            ran, whole = sum(int(p.tokens.sum()) for p in planned), sum(p.unshared_tokens for p in planned)
            slowest = sum(p.costs.max(axis=0).sum() for p in planned)
            mean = sum(p.costs.sum() / world for p in planned)
            rows.append(
                {"what": "epoch plan", "world": world, "seconds": seconds, "tokens": ran, "tokens_one_by_one": whole,
                 "slowest_over_mean": float(slowest / mean), **shape}
            )  # fmt: skip
        pack = [examples[e] for e in plan.step(0, 0).packs[0][0]]
        built = build_pack(pack, images, layout)
        rows.append(
            {"what": "build_pack", "seconds": best(partial(build_pack, pack, images, layout), 20),
             "pairs": len(pack), "tokens": len(built.tokens), "keys": len(built.k_index),
             "rows": len(built.rows), **shape}
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help=f"append the rows to {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common = {
        "command": f"python -m bench.packing --examples {arguments.examples}",
        "date": str(date.today()),
        "device": cpu_name(),
        "threads": 1,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    for row in measure(arguments.examples):
        row = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} | common
        print({k: v for k, v in row.items() if k not in common})
        if arguments.write:
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    )
    return names[0] if names else platform.processor() or sys.platform


if __name__ == "__main__":
    main()
