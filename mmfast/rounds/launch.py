"""How a command is run on all processes of this machine: `mmfast train --gpus N`, or a command of a round in a process
of its own or through torchrun, or, where the rounds themselves run under torchrun or Slurm, on every rank at once.

A command has its own processes, so that the memory of one stage is free for the next, and nothing of one's state
reaches another.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmfast.job.runfolder import STOPPED
from mmfast.job.runtime import PATIENCE

Follow = Callable[[str], None]  # told the last line of what the command says, again and again
ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Failed(Exception):
    """A command ended badly; its text is what the command said of it."""


class Interrupted(Exception):
    """A signal asked the rounds to end; the command that ran has ended too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def invocation(command: Sequence[str]) -> list[str]:
    """The module and its arguments; a training has a module of its own, which knows torchrun."""
    return ["mmfast.train", *command[1:]] if command[0] == "train" else ["mmfast.cli", *command]


def standalone(processes: int) -> list[str]:
    """torchrun's options for so many processes of a module on this machine; the module and its arguments follow."""
    return ["--standalone", "--nproc-per-node", str(processes), "-m"]


def attached(processes: int, arguments: Sequence[str], folder: Path) -> int:
    """Runs a module in so many processes that write to this terminal, and returns the exit code of one process: 75
    where a signal stopped a run in `folder` after its checkpoint. torchrun works in this process and says nothing
    itself: what a rank said of its error is the last line."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's threads, patience and silence
    os.environ.update({k: v for k, v in _threads(processes).items() if v and k not in os.environ})
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    patience = [name for name in torchrun.get_args_parser()._option_string_actions if name == "--shutdown-timeout"]
    more = [*patience, *(["600"] if patience else [])]  # torch 2.11 has no such option, and waits 30 seconds
    stopped, code = folder / STOPPED, 0
    before = _changed_at(stopped)
    try:
        torchrun.run(torchrun.parse_args([*more, *standalone(processes), *arguments]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        code = 128 - first.exitcode if first.exitcode < 0 else first.exitcode
    except SignalException as error:
        code = 128 + error.sigval
    return 75 if _changed_at(stopped) not in (0, before) else code


def _changed_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


class Machine:
    """The processes of this one machine. `processes`: of a wide command; 0: one a GPU, else 1."""

    main = True

    def __init__(self, processes: int = 0) -> None:
        self.processes = processes or max(torch.cuda.device_count(), 1)

    def run(self, command: Sequence[str], log: Path, *, wide: bool, follow: Follow = lambda line: None) -> None:
        several = wide and self.processes > 1
        torchrun = ["torch.distributed.run", *standalone(self.processes)]
        environment = {} if several and "OMP_NUM_THREADS" in os.environ else _threads(self.processes if several else 1)
        followed([*(torchrun if several else []), *invocation(command)], log, environment, follow)


class Ranks:
    """All ranks of a launch, each of which runs the rounds: rank 0 decides, the others do what it says."""

    def __init__(self) -> None:
        dist.init_process_group("gloo", timeout=PATIENCE)
        self.rank, self.main = dist.get_rank(), dist.get_rank() == 0

    def run(self, command: Sequence[str], log: Path, *, wide: bool, follow: Follow = lambda line: None) -> None:
        """On rank 0. What is not wide (servers, people, files) it does alone."""
        if not wide:
            followed(invocation(command), log, {name: None for name in _of_a_launch()}, follow)
            return
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self._tell({"command": list(command), "log": str(log), "port": port})
        self._run(command, log, port, follow)

    def serve(self) -> int:
        """On the other ranks: run what rank 0 says until it ends; returns the exit code."""
        while True:
            order: list[Any] = [None]
            dist.broadcast_object_list(order, src=0)
            told = order[0]
            if "end" in told:
                return int(told["end"])
            log = Path(told["log"])
            with suppress(Failed):  # rank 0's own process has failed with it, and says so
                own = log.with_name(f"{log.stem}-{self.rank}.log")
                self._run(told["command"], own, told["port"], lambda line: None)

    def end(self, code: int) -> None:
        self._tell({"end": code})

    def _tell(self, order: dict[str, Any]) -> None:
        dist.broadcast_object_list([order], src=0)

    def _run(self, command: Sequence[str], log: Path, port: int, follow: Follow) -> None:
        """This rank's process of a wide command: a group of its own, behind a port of its own."""
        followed(invocation(command), log, {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}, follow)


def _of_a_launch() -> list[str]:
    return [
        name for name in os.environ if name in ALONE or name.startswith(("TORCHELASTIC_", "SLURM_", "OMPI_", "PMI_"))
    ]


def _threads(processes: int) -> dict[str, str | None]:
    """Processes that share cores do not each take them all."""
    cores = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": str(max(1, cores // processes))} if processes > 1 else {}


def followed(arguments: list[str], log: Path, environment: dict[str, str | None], follow: Follow) -> None:
    """Runs `python -m ARGUMENTS` with its output in `log`, and waits for it; a signal to us is handed on."""
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "ab") as output:
            start = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
            handed = 0
            while process.poll() is None:
                for number in asked[handed:]:
                    process.send_signal(number)
                handed = len(asked)
                follow(last_line(log, start))
                time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Interrupted(asked[0])
    if process.returncode:
        raise Failed(reason(said(log, start)) or f"it ended with {process.returncode}")


def die_with_parent(by: int = signal.SIGTERM) -> None:
    """In the child: where the parent is killed outright, what it began must not go on writing beside the next start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)  # PR_SET_PDEATHSIG


def said(log: Path, start: int = 0) -> str:
    """What a command has written; nothing where it ended before its first word."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def last_line(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 400))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")


def reason(text: str) -> str:
    """What went wrong, from a command's output: its own line, without the traceback that torchrun adds."""
    lines = text.split("torch/distributed/elastic/multiprocessing/api.py")[0].strip().splitlines()
    own = [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "mmfast: "))]
    return "\n".join(own or lines[-3:])
