"""Run a function on several gloo ranks, forked from a server that has everything imported (a launch costs little)."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mmfast.train", "tests.make.tiny_run"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(rank: int, world: int, port: int, errors: str, function: Callable, arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in names.items()}, MASTER_ADDR="127.0.0.1")
    if world == 1:
        for name in names:
            os.environ.pop(name, None)
    try:
        function(*arguments)
    except BaseException:
        Path(f"{errors}.{rank}").write_text(traceback.format_exc())
        os._exit(1)


def launch(world: int, folder: Path, function: Callable, *arguments: Any) -> list:
    """Start the ranks; returns their processes."""
    port = free_port()
    errors = str(folder / "errors")
    for rank in range(world):
        Path(f"{errors}.{rank}").unlink(missing_ok=True)
    found = [CONTEXT.Process(target=_rank, args=(r, world, port, errors, function, arguments)) for r in range(world)]
    for process in found:
        process.start()
    return found


def finish(processes: list, folder: Path, timeout: float = 120) -> None:
    """Wait for all; raise the first error a rank left."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    hung = [p for p in processes if p.is_alive()]
    for process in hung:
        process.kill()
    told = [path.read_text() for path in sorted(folder.glob("errors.*"))]
    if told:
        raise AssertionError(told[0])
    assert not hung, "ranks hang"
    assert all(p.exitcode == 0 for p in processes), [p.exitcode for p in processes]


def run_ranks(world: int, folder: Path, function: Callable, *arguments: Any, timeout: float = 120) -> None:
    finish(launch(world, folder, function, *arguments), folder, timeout)
