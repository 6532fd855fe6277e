"""Checkpoints: torch DCP shards written by all ranks in the background, checked by digest, renamed when whole.

output_dir/checkpoints/step-N/ holds the shards, the digest of each (digests-RANK.json) and state.json. A folder of that
name is complete by construction: it is written under another name and renamed last. Any world size can load it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process: as meant


def plain_name(name: str) -> str:
    """A parameter's name without what checkpointing and compilation wrap around blocks."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


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
    names = {p: name for name, p in weights.items()}
    moments = {
        f"{names[p]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return {"weights": {name: p.detach() for name, p in weights.items()}, "optimizer": moments}


class Checkpointer:
    def __init__(self, folder: Path, *, keep_last: int = 3, best_metric: str = "") -> None:
        self.folder, self.keep_last, self.best_metric = folder, keep_last, best_metric
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # its own: it runs in a thread
        pinned = torch.cuda.is_available()
        self.stager = DefaultStager(StagingOptions(pinned, False, False, False))
        self.thread: threading.Thread | None = None
        self.error: str = ""
        if self.rank == 0:
            _make(folder)
            for left in folder.glob(".tmp-*"):  # of a run that was killed while writing
                shutil.rmtree(left)

    def save(self, step: int, state: dict[str, Any], info: dict[str, Any], *, wait: bool = False) -> None:
        """Copy the state to host memory, then write it in the background. All ranks call it at the same step."""
        self.finish()
        staged = self._stage(state)
        self.thread = threading.Thread(target=self._write, args=(step, staged, {"step": step, **info}), daemon=True)
        self.thread.start()
        if wait:
            self.finish()

    def _stage(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy in host memory, through pinned buffers kept between checkpoints; torchao's 8-bit states, which those
        cannot hold, are copied plainly."""
        kinds = {type(t) for part in state.values() for t in part.values()}
        if kinds <= {Tensor, nn.Parameter, DTensor} and not any(
            isinstance(t, DTensor) and type(t.to_local()) is not Tensor
            for part in state.values()
            for t in part.values()
        ):
            return self.stager.stage(state)
        return {name: {k: t.detach().to("cpu", copy=True) for k, t in part.items()} for name, part in state.items()}

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
        temporary = self.folder / f".tmp-step-{step}"
        problem = ""
        try:
            writer = dcp.FileSystemWriter(temporary)
            dcp.save(state, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            mine = sorted(temporary.glob(f"__{self.rank}_*.distcp"))
            digests = {path.name: _digest(path) for path in mine}
            _write_json(temporary / f"digests-{self.rank}.json", digests)
        except (Exception, dcp.api.CheckpointException) as error:  # told to every rank, raised by finish()
            problem = _first_cause(error)
        problems = self._gather(problem)
        if not any(problems) and self.rank == 0:
            try:
                _write_json(temporary / "state.json", info)
                final = self.folder / f"step-{step}"
                if final.exists():
                    shutil.rmtree(final)
                os.rename(temporary, final)
                _sync_folder(self.folder)
                self._prune()
            except OSError as error:
                problems[0] = _first_cause(error)
        if any(problems):
            told = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)
            self.error = (
                f"the checkpoint of step {step} could not be written to {self.folder} ({told}); older ones stand"
            )

    def _gather(self, text: str) -> list[str]:
        if self.group is None:
            return [text]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, text, group=self.group)
        return found

    def _prune(self) -> None:
        found = complete(self.folder)
        keep = set(found[-self.keep_last :])
        best = best_checkpoint(self.folder, self.best_metric) if self.best_metric else None
        for path in found:
            if path not in keep and path != best:
                shutil.rmtree(path)

    def load(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Fill `state` in place from a checkpoint of any world size; returns its state.json."""
        problem = ""
        names = sorted(path.glob("*.distcp"))
        digests: dict[str, str] = {}
        for file in path.glob("digests-*.json"):
            digests.update(json.loads(file.read_text()))
        missing = sorted(set(digests) - {p.name for p in names})
        if missing:
            problem = f"{missing[0]} is missing"
        for file in names[self.rank :: self.world]:  # each rank reads its share
            if digests.get(file.name) != _digest(file):
                problem = problem or f"{file.name} is damaged (its sha256 differs from the one written with it)"
        problems = [text for text in self._gather(problem) if text]
        if problems:
            raise ValueError(f"checkpoint {path}: {problems[0]}; delete that folder to resume from an older one")
        reader = dcp.FileSystemReader(path)
        dcp.load(state, storage_reader=reader, process_group=self.group, no_dist=self.group is None)
        return read_info(path)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def lowest_is_best(metric: str) -> bool:
    return metric.endswith(("loss", "/nll")) or "rejected" in metric


def better(metric: str, value: float, than: float) -> bool:
    return value < than if lowest_is_best(metric) else value > than


def read_info(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def best_checkpoint(folder: Path, metric: str) -> Path | None:
    """The complete checkpoint whose own evaluation was best; the earlier of equals."""
    best: tuple[float, Path] | None = None
    for path in complete(folder):
        value = read_info(path).get("metrics", {}).get(metric)
        if value is not None and (best is None or better(metric, value, best[0])):
            best = value, path
    return best[1] if best else None


def best_value(folder: Path, metric: str) -> float | None:
    path = best_checkpoint(folder, metric)
    return read_info(path)["metrics"][metric] if path else None


def find(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `train.resume` means: the newest, none, or a named one."""
    if resume == "never":
        return None
    if resume == "auto":
        found = complete(folder)
        return found[-1] if found else None
    path = Path(resume)
    if not (path / "state.json").is_file():
        raise ValueError(f"train.resume: {resume!r} is not a complete checkpoint (it has no state.json)")
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write checkpoints to {folder}: {error.strerror}") from None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_cause(error: BaseException) -> str:
    """DCP wraps what failed on each rank: the innermost message is the one that helps."""
    failures = error.failures if isinstance(error, dcp.api.CheckpointException) else {}
    for inner, _ in failures.values():
        return _first_cause(inner)
    return f"{type(error).__name__}: {error}"
