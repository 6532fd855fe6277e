"""One step of a run, taken apart: python -m bench.profile [CONFIG] [section.key=value ...]

Without CONFIG: a tiny LLaVA on pairs of the embedded world. The run is a real one, in a folder that goes away; it ends
after its third step, of which the table counts the time and the memory by op, from the end of the step before (so the
wait for data is in it). The whole is also written as a trace for chrome://tracing or ui.perfetto.dev. Under torchrun
each rank writes a trace of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, schedule

from mmfast.config import Config, load
from mmfast.train import train

OUT = Path("runs/profile")
ROWS = 25
HEADINGS = ("op", "calls", "CPU ms", "GPU ms", "CPU MiB", "GPU MiB")


class Profiled(Exception):
    """The step is recorded: the run has done its part."""


def profile_step(config: Config, out: Path = OUT) -> tuple[profile, Path]:
    """The profile of the third step of a run of `config`, and its trace in `out`."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = out / f"trace-{os.environ.get('RANK', '0')}.json"

    def write(recorded: profile) -> None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(trace))

    def step_is_over(*_: Any) -> None:
        recorder.step()
        if recorder.step_num == 3:
            raise Profiled

    # The first step allocates, and what comes before it is no step; the second warms the profiler.
    recorder = profile(
        activities=activities,
        schedule=schedule(wait=1, warmup=1, active=1, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        config.data.cache = str(config.cache_dir())
        config.output_dir = folder
        hook = register_optimizer_step_post_hook(step_is_over)
        try:
            with recorder:
                train(config)
        except Profiled:
            return recorder, trace
        finally:
            hook.remove()
    raise ValueError("the run has fewer than three steps: the third is profiled (train.steps)")


def table(recorded: profile, rows: int = ROWS) -> str:
    """The ops that took most time of their own, on the GPU where there is one, and the sums over all. Kernels have no
    rows of their own: their time is that of the op which launched them."""
    ops = [
        (event.key, event.count, *of_its_own(event))
        for event in recorded.key_averages()
        if event.device_type == DeviceType.CPU and not event.key.startswith(("ProfilerStep", "[memory]"))
    ]
    ops.sort(key=lambda op: (op[3], op[2]), reverse=True)
    sums = [sum(column) for column in list(zip(*ops, strict=True))[1:]]
    lines = [HEADINGS, *(line(*op) for op in ops[:rows]), line("all ops", *sums)]
    return "\n".join(
        f"{first[:52]:52} {calls:>7} " + " ".join(f"{n:>10}" for n in rest) for first, calls, *rest in lines
    )


def of_its_own(event: Any) -> tuple[float, float, float, float]:
    """CPU and GPU milliseconds, CPU and GPU MiB, without those of the ops inside."""
    milliseconds = event.self_cpu_time_total / 1e3, event.self_device_time_total / 1e3
    return *milliseconds, event.self_cpu_memory_usage / 2**20, event.self_device_memory_usage / 2**20


def line(op: str, calls: int, *numbers: float) -> tuple[str, ...]:
    return op, str(calls), *(f"{number:.2f}" for number in numbers)


def tiny(folder: Path) -> Config:
    from tests.make.tiny_run import make_config, make_model, write_pairs

    return make_config(folder, make_model(folder), write_pairs(folder, 16))


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in ("-h", "--help"):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        if given:
            config = load(given[0], given[1:])
        else:
            config = tiny(Path(folder))
        recorded, trace = profile_step(config)
    if os.environ.get("RANK", "0") == "0":
        print(table(recorded))
    print(f"the step's trace, for chrome://tracing or ui.perfetto.dev: {trace}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"bench.profile: {error}")
