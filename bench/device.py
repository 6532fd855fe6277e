"""How the rows of a GPU are measured: by device events, beside a roof that is measured in the same run.

flops is a fixed numerator, 2 U D V a pass that the job needs (2 passes with a frozen head, 3 with a trained one),
whatever anybody recomputes. A roof is measured in the same run: a large bf16 product, and a large copy.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Row = dict[str, Any]
Run = Callable[[], object]
PACKAGES = ("torch", "triton", "trl", "liger-kernel", "cut-cross-entropy", "transformers")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass
class Setup:
    device: torch.device
    repeats: int
    dry: bool
    deadline: float
    roofs: dict[str, float] = field(default_factory=dict)  # "flops", "bytes" a second

    def late(self, what: str) -> bool:
        if time.monotonic() < self.deadline:
            return False
        print(f"# out of time: {what} was left out")
        return True


def timed(setup: Setup, runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Seconds of every run, round by round, by device events where there is a device. Two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(setup.repeats + 2):
        for name, run in runs.items():
            if setup.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                run()
                end.record()
                end.synchronize()
                seconds = start.elapsed_time(end) / 1e3
            else:
                begin = time.perf_counter()
                run()
                seconds = time.perf_counter() - begin
            if r >= 2:
                times[name].append(seconds)
    return times


def result(setup: Setup, op: str, peer: str, mode: str, shape: list[int], seconds: list[float], **more: Any) -> Row:
    middle = statistics.median(seconds)
    row: Row = {"op": op, "peer": peer, "mode": mode, "shape": shape, "median_s": middle, "best_s": min(seconds),
                "repeats": len(seconds), **more}  # fmt: skip
    for unit in ("flops", "bytes"):
        if unit in more and unit in setup.roofs:
            row["fraction_of_roof"] = more[unit] / middle / setup.roofs[unit]
    return row


def roof(setup: Setup) -> Iterator[Row]:
    n, size = (256, 1 << 16) if setup.dry else (8192, 1 << 30)
    a, b = (torch.randn(n, n, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.randn(size // 4, device=setup.device)
    target = torch.empty_like(source)
    times = timed(setup, {"mm": lambda: torch.mm(a, b, out=out), "copy": lambda: target.copy_(source)})
    setup.roofs = {
        "flops": 2 * n**3 / statistics.median(times["mm"]),
        "bytes": 2 * size / statistics.median(times["copy"]),
    }
    yield result(setup, "roof", "torch.mm", "bfloat16", [n, n, n], times["mm"], flops=2 * n**3)
    yield result(setup, "roof", "copy_", "float32", [size], times["copy"], bytes=2 * size)


def hundred(run: Run) -> None:
    for _ in range(100):
        run()


def graphed(run: Run, device: torch.device) -> Run:
    """Device time alone: 100 replays of the captured launches."""
    if device.type != "cuda":
        return partial(hundred, run)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return partial(hundred, graph.replay)
