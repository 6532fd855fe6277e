"""What a training process stands on: ranks, device, signals, seeds, memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mmfast.config import Config
from mmfast.job.runfolder import Lock

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # ranks wait for rank 0's long work: a download, the build of a million examples


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
    lock: Lock | None = None  # of output_dir, on rank 0
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
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.host)

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on every rank; where it raises there, every rank does."""
        value, problem = None, ""
        if self.main:
            try:
                value = work()
            except (ValueError, OSError) as error:
                if self.world == 1:
                    raise
                problem = str(error) or type(error).__name__
        self.agree(problem)
        return self.gather(value)[0]

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
        if self.lock is not None:
            self.lock.close()
        if self.owns_group:
            dist.destroy_process_group()

    def hold(self, folder: Path, named: str = "output_dir") -> None:
        """Rank 0 locks output_dir until `close`; raises everywhere, with its holder, where another run has it. Held
        already, or lying in a folder that is held, it stays so."""

        def lock() -> None:
            if self.lock is None or self.lock.folder not in (folder, *folder.parents):
                self.lock = Lock(folder, named)

        self.from_main(lock)

    def marked(self, error: Exception) -> Exception:
        """`error.told`: another rank says the same, so that what every rank finds is printed once. Waits for nobody."""
        said = 1
        if self.world > 1 and dist.is_initialized():
            try:
                store = dist.distributed_c10d._get_default_store()
                said = store.add(f"said/{hashlib.sha256(str(error).encode()).hexdigest()}", 1)
            except RuntimeError:  # the rank that kept the store has left
                pass
        error.told = said > 1  # type: ignore[attr-defined]
        return error

    def watch_signals(self) -> None:
        """SIGTERM, SIGUSR1 and a first SIGINT (Ctrl-C) ask for a checkpoint and an end after the current step; a second
        SIGINT ends the process now."""

        def note(number: int, _: FrameType | None) -> None:
            name = signal.Signals(number).name
            if number == signal.SIGINT and name in self._stop:
                if self.world > 1:  # an exception would wait for ranks that have left
                    os._exit(130)
                raise KeyboardInterrupt
            self._stop.append(name)
            if number == signal.SIGINT and self.main:
                os.write(2, b"\nstopping after this step, with a checkpoint; once more: stop now, without\n")

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._handlers[number] = signal.signal(number, note)

    def asked_by(self) -> str:
        """The signal that asked for the stop, whichever rank got it."""
        return next((names[0] for names in self.gather(self._stop) if names), "")

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


class Unable(RuntimeError):
    """A run cannot go on, for a reason that its user can mend: told in one line, without a traceback."""


class Stopped(SystemExit):
    """A run was stopped by a signal, after a checkpoint. One process exits with 75 (try again). Under torchrun a worker
    that does not exit with 0 counts as failed, and may be started again at once: there output_dir/stopped tells."""

    def __init__(self) -> None:
        super().__init__(0 if "TORCHELASTIC_RUN_ID" in os.environ else 75)


def check_launch() -> None:
    """Refuse to be one of several tasks that know nothing of each other: each would be a run of its own, all of them in
    one output_dir."""
    e = os.environ
    if "RANK" in e:
        return
    if int(e.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"WORLD_SIZE is {e['WORLD_SIZE']} but RANK is not set: start the processes with torchrun")
    tasks = {
        "Slurm": e.get("SLURM_STEP_NUM_TASKS", e.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in e else "1",
        "mpirun": e.get("OMPI_COMM_WORLD_SIZE", e.get("MV2_COMM_WORLD_SIZE", "1")),
        "PMI": e.get("PMI_SIZE", "1"),
    }
    for who, count in tasks.items():
        if count.isdigit() and int(count) > 1:
            each = " (under Slurm: srun --ntasks-per-node=1 torchrun ...)" if who == "Slurm" else ""
            raise ValueError(
                f"{who} started {count} tasks, and none has a RANK: each would run alone, all in one folder. "
                f"Start one torchrun a node: torchrun --nnodes N --nproc-per-node GPUS --rdzv-backend c10d "
                f"--rdzv-endpoint HOST:29500 -m mmfast.train CONFIG (or -m mmfast.cli generate ...){each}; one process "
                "alone is RANK=0 WORLD_SIZE=1"
            )


def task_number() -> int:
    """Which of the processes on this node this is, however they were started."""
    names = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def start(config: Config) -> Runtime:
    """The processes of a training run. One process alone makes a group of itself only where FSDP2 is needed: for
    casting (bf16) and for offloading."""
    check_launch()
    if config.parallel.threads:
        torch.set_num_threads(config.parallel.threads)
    gpu = torch.cuda.is_available()
    if config.parallel.offload and not gpu:
        raise ValueError("parallel.offload moves state from a GPU to host memory, and no GPU is here: set it to false")
    if config.model.quantize and not gpu:
        raise ValueError('model.quantize = "nf4" needs a GPU, and none is here')
    if not gpu:
        keep_freed_memory()
    return join(group=config.model.dtype != "float32" or config.parallel.offload)


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, large blocks too: a step on CPU takes the same sizes again and again, and each
    page that the kernel hands out anew is a fault. False where there is no glibc, or its settings are the user's."""
    settings = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if any(name in os.environ for name in settings) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**31 - 1))


def join(*, group: bool = False) -> Runtime:
    """Join the process group that torchrun describes (nccl on GPUs, gloo on CPU). `group`: one process alone makes a
    group of itself."""
    check_launch()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available():
        if local_world > torch.cuda.device_count():
            raise ValueError(f"{local_world} processes on this node, but it has {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    runtime = Runtime(rank, world, local, local_world, device)
    alone = world == 1 and group
    if (world > 1 or alone) and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore() if alone else None
        dist.init_process_group(backend, store=store, rank=rank if alone else -1, world_size=world if alone else -1)
        runtime.owns_group = True
    if world > 1:
        runtime.host = dist.new_group(backend="gloo", timeout=PATIENCE)
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
