"""What a training process stands on: ranks, device, signals, seeds, memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mmfast.config import Config


@dataclass
class Runtime:
    """rank and world of this process (0 and 1 without torchrun) and the device it computes on."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device
    host: Any = None  # a gloo group for what the host must agree on, when there is more than one rank
    owns_group: bool = False
    _stop: list[str] = field(default_factory=list)
    _handlers: dict[int, Any] = field(default_factory=dict)
    _asked: tuple[torch.Tensor, Any] | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Sum a small vector over ranks and bring it to the host: the one synchronisation of a log step."""
        if self.world > 1:
            dist.all_reduce(values)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.host)
        return found

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.host)

    def agree(self, problem: str) -> None:
        """Raise on every rank what any rank found wrong, so that none waits for another that left."""
        told = [text for text in self.gather(problem) if text]
        if told:
            raise ValueError(told[0])

    def close(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._asked is not None:
            self._asked[1].wait()
        if self.owns_group:
            dist.destroy_process_group()

    def watch_signals(self) -> None:
        """SIGTERM and SIGUSR1 ask for a checkpoint and a clean exit after the current step."""

        def note(number: int, _: FrameType | None) -> None:
            self._stop.append(signal.Signals(number).name)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._handlers[number] = signal.signal(number, note)

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop before the last call: all ranks answer alike, a step late, without
        waiting for the device or (but for stragglers) for each other."""
        if self.world == 1:
            return bool(self._stop)
        answer = False
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor(float(bool(self._stop)))
        self._asked = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.host, async_op=True))
        return answer


def start(config: Config) -> Runtime:
    """Join the process group that torchrun describes (nccl on GPUs, gloo on CPU). One process alone makes a group of
    itself only where FSDP2 is needed: for casting (bf16) and for offloading."""
    if config.parallel.threads:
        torch.set_num_threads(config.parallel.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available():
        if local_world > torch.cuda.device_count():
            raise ValueError(f"{local_world} processes on this node, but it has {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if config.parallel.offload and device.type != "cuda":
        raise ValueError("parallel.offload moves state from a GPU to host memory, and no GPU is here: set it to false")
    if config.model.quantize and device.type != "cuda":
        raise ValueError('model.quantize = "nf4" needs a GPU, and none is here')
    runtime = Runtime(rank, world, local, local_world, device)
    alone = world == 1 and (config.model.dtype != "float32" or config.parallel.offload)
    if (world > 1 or alone) and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore() if alone else None
        dist.init_process_group(backend, store=store, rank=rank if alone else -1, world_size=world if alone else -1)
        runtime.owns_group = True
    if world > 1:
        runtime.host = dist.new_group(backend="gloo")
    return runtime


def reseed(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """All generators from where the run stands, for each micro-batch: nothing of them needs saving."""
    state = np.random.SeedSequence((seed, step, micro_batch, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


class Memory:
    """`memory_gib`: on a GPU the allocator's peak; on a CPU the peak resident memory less that at construction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0 if device.type == "cuda" else _peak_resident()

    def peak_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return (_peak_resident() - self.before) / 2**30


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss survives fork and exec: it may be a parent's
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of a known GPU, for `mfu`; 0 where it is not known (the CPU)."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    known = {
        "H100": 989e12,
        "H200": 989e12,
        "H800": 989e12,
        "B200": 2250e12,
        "A100": 312e12,
        "A800": 312e12,
        "L40S": 362e12,
    }
    return next((flops for key, flops in known.items() if key in name), 0.0)
