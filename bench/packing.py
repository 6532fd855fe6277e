"""What packing costs on the host: python -m bench.packing [--examples 100000] [--write]

Rows: the start of a run on stored examples (time, and memory of a rank beside the mapped file); the forests of a whole
data set, step by step, on one core (bar: 2 s for 100k examples); the plan of an epoch; building one pack. The floor
beside the forests' time is one read of every token id at memory speed (numpy's sum).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmfast.data.problems import Report
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.packing import Layout, Plan, PlanSettings, build_pack
from mmfast.packing.cost import Cost
from mmfast.packing.tree import prefix_forest

RESULTS = Path(__file__).parent / "results" / "packing.jsonl"
IMAGE = 31999
LAYER = 4 * 4096 * 4096 + 3 * 4096 * 11008  # multiply-adds of a token in a decoder layer of LLaVA-1.5 7B; it has 32
LLAVA_7B = Cost(attention=2 * 4096 / LAYER, head=4096 * 32000 / (32 * LAYER), vision=3e8 / (32 * LAYER))


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


def start(count: int) -> dict:
    """What a run's start costs once its examples are built: the store opened, an epoch planned, every response key
    read. Memory: what the process holds of its own, beside the mapped file."""
    from mmfast.data.store import ExampleStore, merge_parts, write_part
    from mmfast.data.symbols import collapse

    with tempfile.TemporaryDirectory() as folder:
        parts: list[Path] = []
        images: dict[str, ImageInfo] = {}
        for k in range(0, count, 10_000):
            examples, more = llava_pairs(min(10_000, count - k), 4, seed=k)
            renamed = {name: f"{k}-{name}" for name in more}
            images |= {renamed[n]: replace(info, id=renamed[n], source=renamed[n]) for n, info in more.items()}
            symbols = collapse(examples, more, IMAGE)
            symbols = replace(symbols, image_ids=[renamed[name] for name in symbols.image_ids])
            content = {
                "images": [asdict(images[i]) for i in symbols.image_ids],
                "files": [],
                "report": Report().to_dict(),
            }
            parts.append(Path(folder) / f"part-{k:09}.safetensors")
            write_part(parts[-1], symbols, [0] * len(symbols), content)
        merge_parts(Path(folder) / "store", parts, {"key": "", "image_token_id": IMAGE})
        settings = PlanSettings(pairs_per_step=128, tokens_per_pack=16384)

        def open_and_plan() -> tuple[Plan, int]:
            store = ExampleStore(Path(folder) / "store")
            plan = Plan(store, images, Layout(image_token_id=IMAGE), settings, cost=LLAVA_7B)
            return plan, sum(len(pair) for pair in store.symbols.named())

        seconds = best(open_and_plan, 3)
        tracemalloc.start()
        plan, keys = open_and_plan()
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = (Path(folder) / "store" / "examples.safetensors").stat().st_size
    assert keys == 2 * plan.examples == 2 * count
    return {"what": "start of a run", "examples": count, "seconds": seconds, "bytes_an_example": held / count,
            "most_bytes_an_example": most / count, "mapped_bytes_an_example": size / count}  # fmt: skip


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
    for row in [start(arguments.examples), *measure(arguments.examples)]:
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
