"""Host time and launches of linear_logprob, forward and backward: python -m bench.logprob_host [--shape U,D,V]

On a GPU the time is until the call returns, the device idle before it; then the launches as the profiler saw them, the
device's time, and whether a CUDA graph of the call replays to the same bits. On CPU the kernels and GEMMs have empty
bodies: what is left is Python's part.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.head import backends
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.spec import KEEP_BUDGET

SHAPES = [(256, 3584, 152064), (2048, 3584, 152064)]
TILE = 256 << 20
Call = Callable[[], tuple[Tensor, ...]]


class Empty:
    """A native module whose kernels only note that they were called."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: self.calls.append(name)) if name.startswith("cuda_") else lambda *_: None


class EmptyFolds(NativeFolds):
    """The CUDA half without its kernels, on any device."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__("cuda", Empty(calls))
        self.calls = calls

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        self.calls.append("gemm")


def problem(shape: tuple[int, int, int], trained: bool, device: torch.device) -> dict[str, Any]:
    rows, dim, vocab = shape
    g = torch.Generator(device).manual_seed(0)
    make: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "generator": g}
    return {
        "hidden": torch.randn(rows, dim, **make).requires_grad_(),
        "weight": (torch.randn(vocab, dim, **make) * dim**-0.5).requires_grad_(trained),
        "targets": torch.randint(0, vocab, (rows,), device=device, generator=g),
        "tile_budget": TILE,
        "keep_budget": KEEP_BUDGET["cuda"],
    }


def step(arguments: dict[str, Any], upstream: Tensor, backend: str | None) -> Call:
    trained = [arguments[name] for name in ("hidden", "weight") if arguments[name].requires_grad]

    def run() -> tuple[Tensor, ...]:
        logp = linear_logprob(**arguments, backend=backend)
        return (logp.detach(), *torch.autograd.grad(logp, trained, upstream))

    return run


def host_us(run: Call, repeats: int = 50) -> float:
    times = []
    for _ in range(repeats + 5):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[5:])


def device_ms(run: Call, repeats: int = 10) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def launched(run: Call) -> Counter[str]:
    """Counts the kernels that the device ran, by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        run()
        torch.cuda.synchronize()
    names = [e.name for e in watched.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return Counter(name.split("<")[0].removeprefix("void ")[-60:] for name in names)


def same_when_replayed(run: Call) -> bool:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        want = [t.clone() for t in run()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    for t in made:
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return all(torch.equal(a, b) for a, b in zip(made, want, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", help="U,D,V")
    asked = parser.parse_args().shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [tuple(map(int, asked.split(",")))] if asked else SHAPES
    calls: list[str] = []
    if device.type == "cpu":
        torch.set_num_threads(1)
        backends.FOLDS["torch"] = lambda: EmptyFolds(calls)
        shapes = shapes if asked else [(rows, 8, vocab) for rows, _, vocab in shapes]
    for shape in shapes:
        for trained in (False, True):
            arguments = problem(shape, trained, device)  # type: ignore[arg-type]
            run = step(arguments, torch.randn(shape[0], device=device), "torch" if device.type == "cpu" else None)
            told = f"{list(shape)} {'trained' if trained else 'frozen'}: host {host_us(run):.0f} us"
            if device.type == "cpu":
                calls.clear()
                run()
                print(f"{told}, {len(calls)} launches of ours")
                continue
            counts = launched(run)
            print(f"{told}, device {device_ms(run):.2f} ms, {sum(counts.values())} launches, "
                  f"replayed to the same bits: {same_when_replayed(run)}")  # fmt: skip
            print("   ", ", ".join(f"{count} {name}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
