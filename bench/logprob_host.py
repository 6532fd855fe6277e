"""Host time and launches of linear_logprob, forward and backward: python -m bench.logprob_host [--shape U,D,V]

On a GPU, beside the peers: the time until the call returns, the device idle before it; the device's time of calls one
behind another; the launches as the profiler saw them; and whether a CUDA graph of ours replays to the same bits. On CPU
the kernels and GEMMs of ours have empty bodies, and the model is 8 wide: what is left is what Python costs.
With --write rows go to bench/results/gpu.jsonl or ops-cpu.jsonl. `python -m bench.gpu --only host` is the same.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.device import Row, Setup, result, versions
from bench.logprob import Head, eager, liger, trl, working
from bench.timing import machine, write_rows
from mmfast.ops import linear_logprob
from mmfast.ops.head import backends
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.spec import KEEP_BUDGET

MODE = "host time of one call"
SHAPES = [(256, 3584, 152064), (2048, 3584, 152064)]
NARROW = 8  # width of the model where products have empty bodies
WARM = 5  # calls
TILE = 256 << 20
PEERS: dict[str, Head] = {"eager": eager, "trl": trl, "liger": liger}
Shape = tuple[int, int, int]
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


@contextmanager
def empty_bodies() -> Iterator[list[str]]:
    """Inside, backend="torch" only notes what the CUDA half would launch."""
    calls: list[str] = []
    with mock.patch.dict(backends.FOLDS, {"torch": lambda: EmptyFolds(calls)}):
        yield calls


def problem(shape: Shape, trained: bool, device: torch.device) -> dict[str, Any]:
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


def peer_step(head: Head, arguments: dict[str, Any], upstream: Tensor) -> Call:
    hidden, weight, targets = (arguments[name] for name in ("hidden", "weight", "targets"))
    trained = [tensor for tensor in (hidden, weight) if tensor.requires_grad]

    def run() -> tuple[Tensor, ...]:
        logp = head(hidden, weight, targets)
        return torch.autograd.grad(logp, trained, upstream.to(logp.dtype))

    return run


def host_seconds(runs: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """Until each call returns, the device idle before it; turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + WARM):
        for name, run in runs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if repeat >= WARM:
                times[name].append(time.perf_counter() - start)
    return times


def device_seconds(run: Call, repeats: int = 10) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats


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


def device_rows(setup: Setup, shapes: list[Shape] | None = None) -> Iterator[Row]:
    on_gpu = setup.device.type == "cuda"
    for shape in shapes or ([(16, NARROW, 1000)] if setup.dry else SHAPES):
        for trained in (False, True):
            mode = f"{MODE}, {'trained' if trained else 'frozen'} head"
            if setup.late(f"linear_logprob {shape} {mode}"):
                return
            measured = on_device(setup, shape, trained) if on_gpu else on_cpu(setup, shape, trained)
            for peer, (seconds, more) in measured.items():
                yield result(setup, "linear_logprob", peer, mode, list(shape), seconds, dtype="bfloat16", **more)


Measured = dict[str, tuple[list[float], dict[str, Any]]]  # the seconds and what else was seen, by peer


def on_cpu(setup: Setup, shape: Shape, trained: bool) -> Measured:
    """Ours alone: the peers' kernels cannot be emptied."""
    with empty_bodies() as calls:
        run = step(problem(shape, trained, setup.device), torch.randn(shape[0]), "torch")
        seconds = host_seconds({"mmfast": run}, setup.repeats)["mmfast"]
        calls.clear()
        run()
    return {"mmfast": (seconds, {"launches": len(calls), "what": "kernels and products with empty bodies"})}


def on_device(setup: Setup, shape: Shape, trained: bool) -> Measured:
    """All times first: a profiler may leave something behind that slows launches."""
    arguments, upstream = problem(shape, trained, setup.device), torch.randn(shape[0], device=setup.device)
    calls: dict[str, Call] = {"mmfast": step(arguments, upstream, None)}
    calls |= {name: peer_step(head, arguments, upstream) for name, head in PEERS.items()}
    runs = {name: calls[name] for name in working(dict(calls))}
    seconds = host_seconds(runs, setup.repeats)
    more: dict[str, dict[str, Any]] = {name: {"device_s": device_seconds(run)} for name, run in runs.items()}
    more["mmfast"]["replayed_to_the_same_bits"] = same_when_replayed(runs["mmfast"])
    for name, run in runs.items():
        counts = launched(run)
        more[name]["launches"] = sum(counts.values())
        print(f"# {name} launches", ", ".join(f"{count} {kernel}" for kernel, count in counts.most_common()))
    return {name: (seconds[name], more[name]) for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="U,D,V")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    shapes: list[Any] = [tuple(map(int, options.shape.split(",")))] if options.shape else SHAPES
    if not on_gpu:
        torch.set_num_threads(1)
        shapes = shapes if options.shape else [(rows, NARROW, vocab) for rows, _, vocab in shapes]
    setup = Setup(torch.device("cuda" if on_gpu else "cpu"), options.repeats, dry=False, deadline=math.inf)
    about = machine() | ({"peer_versions": versions()} if on_gpu else {})
    for row in device_rows(setup, shapes):
        shown = {name: row[name] for name in ("device_s", "launches", "replayed_to_the_same_bits") if name in row}
        print(row["shape"], row["mode"], row["peer"], f"{1e6 * row['median_s']:.0f} us", shown, flush=True)
        if options.write:
            write_rows(Path(__file__).parent / "results" / ("gpu.jsonl" if on_gpu else "ops-cpu.jsonl"), [row | about])


if __name__ == "__main__":
    main()
