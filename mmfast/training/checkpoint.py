"""Checkpoints: torch DCP shards written by all ranks in the background, checked by digest, renamed when whole.

A folder named step-N is complete by construction: it is written under another name and renamed last. Any world size can
load it. checkpoint_files.py says what lies in it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from mmfast.files import sha256_of, sync_folder, write_json, write_text
from mmfast.job.checkpoint_files import (
    FORMAT,
    Planner,
    Reader,
    best_checkpoint,
    best_value,
    better,
    complete,
    damage,
    find,
    read_info,
    seal,
)
from mmfast.models.names import plain_name
from mmfast.training.staging import Staging

__all__ = ["Checkpointer", "best_checkpoint", "complete", "find", "read_info", "trainable", "training_state"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def materialise(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimiser's state as its first step would, so that a checkpoint has something to load into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 0  # a float stays a float, a tensor a tensor
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Trainable weights and their optimiser state, by name."""
    weights = trainable(model)
    names: dict[Tensor, str] = {p: name for name, p in weights.items()}
    moments = {
        f"{names[p]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return {"weights": {name: p.detach() for name, p in weights.items()}, "optimizer": moments}


class Checkpointer:
    """`settings`: the run's config.toml, which goes into every checkpoint. No file is touched before `begin`."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 3,
        best_metric: str = "",
        lowest: bool | None = None,
        best_step: Callable[[], int | None] | None = None,
        settings: str = "",
    ) -> None:
        """`lowest`: whether the smallest value of best_metric is the best; None: its name tells. `best_step` gives the
        best's step, on rank 0, where something else than the value decides; None where the value does."""
        self.folder, self.keep_last, self.best_metric, self.settings = folder, keep_last, best_metric, settings
        self.judged_on = ""  # digest of the held-out examples (or benchmarks) that best_metric is of
        self.lowest = lowest
        self.best_step = best_step or (lambda: None)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # its own: it runs in a thread
        self.staging = Staging()
        self.thread: threading.Thread | None = None
        self.error: str = ""

    def begin(self) -> None:
        """Rank 0 makes the folder and removes what a killed run left half-written or half-removed."""
        if self.rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.glob(".tmp-*"):
                    shutil.rmtree(left)
                sync_folder(self.folder)
            except OSError as error:
                raise ValueError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None

    def save(self, step: int, state: dict[str, Any], info: dict[str, Any], *, wait: bool = False) -> None:
        """Copy the state to host memory, then write it in the background. All ranks call it at the same step."""
        self.finish()
        staged = self.staging(state)
        self.thread = threading.Thread(target=self._write, args=(step, staged, {"step": step, **info}), daemon=True)
        self.thread.start()
        if wait:
            self.finish()

    def poll(self) -> None:
        """Raise what a finished write in the background failed with."""
        if self.thread is not None and not self.thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait for the write in the background."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, ""
            raise RuntimeError(error)

    def _write(self, step: int, state: dict[str, Any], info: dict[str, Any]) -> None:
        temporary, final = self.folder / f".tmp-step-{step}", self.folder / f"step-{step}"
        problem = f"{final} is there already" if self.rank == 0 and final.exists() else ""
        mine: dict[str, list[Any]] = {}
        try:
            writer = dcp.FileSystemWriter(temporary)
            dcp.save(state, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            for path in sorted(temporary.glob(f"__{self.rank}_*.distcp")):
                mine[path.name] = [path.stat().st_size, sha256_of(path)]
        except (Exception, dcp.api.CheckpointException) as error:  # told to every rank, raised by finish()
            problem = _first_cause(error)
        of_ranks = self._gather((problem, mine))
        problems = [told for told, _ in of_ranks]
        if not any(problems) and self.rank == 0:
            try:
                write_text(temporary / "config.toml", self.settings)
                files = {name: entry for _, theirs in of_ranks for name, entry in theirs.items()}
                for name in (".metadata", "config.toml"):
                    files[name] = [(temporary / name).stat().st_size, sha256_of(temporary / name)]
                write_json(temporary / "state.json", seal({"format": FORMAT, "files": files, **info}))
                os.rename(temporary, final)
                sync_folder(self.folder)
                self._prune()
            except OSError as error:
                problems[0] = _first_cause(error)
        if any(problems):
            told = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)
            self.error = (
                f"the checkpoint of step {step} could not be written to {self.folder} ({told}); older ones stand"
            )

    def _gather(self, value: Any) -> list[Any]:
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Add to the checkpoint of `step` what was measured at it."""
        self.finish()
        if self.rank == 0:
            measured = {"data": self.judged_on, "metrics": metrics}
            write_json(self.folder / f"step-{step}" / "evaluation.json", seal(measured))

    def beats(self, value: float) -> bool:
        """Whether a value of best_metric is better than that of every checkpoint."""
        self.finish()  # so that every rank sees the same checkpoints
        best = best_value(self.folder, self.best_metric, self.judged_on, self.lowest)
        return best is None or better(self.best_metric, value, best, self.lowest)

    def _prune(self) -> None:
        paths = complete(self.folder)
        keep = set(paths[-self.keep_last :])
        best: Path | None = None
        if (step := self.best_step()) is not None:
            best = self.folder / f"step-{step}"
        elif self.best_metric:
            best = best_checkpoint(self.folder, self.best_metric, self.judged_on, self.lowest)
        for path in paths:
            if path not in keep and path != best:
                gone = self.folder / f".tmp-gone-{path.name}"  # a kill must not leave half of a checkpoint
                os.rename(path, gone)
                shutil.rmtree(gone)

    def problem(self, path: Path) -> str:
        """What is wrong with a checkpoint, every byte read (each rank its share of the shards), alike on every rank."""
        told = damage(path)
        if not told:
            shards = [
                (name, d) for name, (_, d) in sorted(read_info(path)["files"].items()) if name.endswith(".distcp")
            ]
            for name, digest in shards[self.rank :: self.world]:
                if sha256_of(path / name) != digest:
                    told = f"checkpoint {path}: {name} is damaged (its sha256 differs from the one written with it)"
        return next((text for text in self._gather(told) if text), "")

    def load(self, path: Path, state: dict[str, Any], *, checked: bool = False) -> dict[str, Any]:
        """Fill `state` in place from a checkpoint of any world size; returns its state.json."""
        if not checked and (problem := self.problem(path)):
            raise ValueError(f"{problem}; delete that folder to go on from an older one")
        reader, alone = Reader(path), self.group is None
        try:
            dcp.load(state, storage_reader=reader, planner=Planner(), process_group=self.group, no_dist=alone)
        except (Exception, dcp.api.CheckpointException) as error:  # told alike on every rank, by DCP
            raise ValueError(f"checkpoint {path} does not load: {_first_cause(error)}".split("\n")[0]) from error
        return read_info(path)


def _first_cause(error: BaseException) -> str:
    """DCP wraps what failed on each rank: the innermost message is the one that helps."""
    failures = error.failures if isinstance(error, dcp.api.CheckpointException) else {}
    for inner, _ in failures.values():
        return _first_cause(inner)
    return f"{type(error).__name__}: {error}"
