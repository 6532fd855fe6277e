"""How everything is measured: peers interleaved in one process, best and median of many, peak memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]


class Seconds(list[float]):
    """Wall times, and beside each the processor time of all threads, which a loaded machine distorts less."""

    def __init__(self) -> None:
        super().__init__()
        self.processor: list[float] = []


def interleave(runs: Mapping[str, Run], repeats: int = 9, pause: float = 0.0, warm: bool = False) -> dict[str, Seconds]:
    """Seconds of every run, round by round: a machine that slows down slows all of them. One warm-up round, unless all
    are `warm` already. On CUDA a time ends when the device is done."""
    times = {name: Seconds() for name in runs}
    for run in runs.values():
        if not warm:
            run()
    cuda = torch.cuda.is_available()
    for _ in range(repeats):
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
            gc.collect()
            if cuda:
                torch.cuda.synchronize()
            start, busy = time.perf_counter(), time.process_time()
            run()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
            times[name].processor.append(time.process_time() - busy)
    return times


def gradient(
    loss: Callable[..., Tensor], inputs: Sequence[Tensor], *arguments: Any, upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The gradients of loss(*arguments) by `inputs`."""
    return torch.autograd.grad(loss(*arguments), inputs, upstream)


def summary(seconds: list[float]) -> dict[str, float]:
    row: dict[str, float] = {
        "best_s": min(seconds),
        "median_s": statistics.median(seconds),
        "repeats": len(seconds),
    }
    if isinstance(seconds, Seconds):
        row["processor_best_s"] = min(seconds.processor)
    return row


def compared(
    op: str, shape: str, times: Mapping[str, list[float]], floor: str, **more: Any
) -> Iterator[dict[str, Any]]:
    """One row a run; each carries its ratio to the floor or peer named `floor`, of the same interleaved rounds."""
    best = min(times[floor])
    for peer, seconds in times.items():
        yield {"op": op, "peer": peer, "shape": shape, **more, **summary(seconds), f"x_{floor}": min(seconds) / best}


def peak_mib(run: Run, result_bytes: int = 0, warm: bool = False) -> float:
    """Memory `run` needs beyond what was there before, in MiB. `result_bytes` (its gradients) are not counted.

    On Linux without CUDA: the process's high-water mark (VmHWM), set back just before; freed heap is given back first.
    """
    if not warm:
        run()  # lazy initialisation is not the op's
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before - result_bytes) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before - result_bytes) / 2**20


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def machine() -> dict[str, Any]:
    """What a row must say to be believed elsewhere."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
        name = names[0].split(":")[1].strip() if names else platform.processor()
        device = f"{name}, {torch.get_num_threads()} threads"
    return {
        "device": device,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0],  # what else ran here
        "command": "python -m " + " ".join([_module(), *sys.argv[1:]]),
    }


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else os.path.basename(sys.argv[0])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows; a row of the same op, peer, shape, dtype, mode and device replaces the older one."""
    key = ("op", "peer", "shape", "dtype", "mode", "device")
    new = {tuple(str(r.get(k)) for k in key) for r in rows}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [r for r in old if tuple(str(r.get(k)) for k in key) not in new]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in [*kept, *rows]))
