"""Where the numbers of a run go: metrics.jsonl always, the screen, and TensorBoard, W&B or trackio where asked.

One call, `log(step, values)`. Metric names are TRL's. Only rank 0 has a Metrics.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.packages import how_to_install

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise before anything expensive if a tracker that was asked for is not installed."""
    for name in names:
        if importlib.util.find_spec(EXTRAS[name]) is None:
            raise ValueError(f"log.trackers: {name!r} is not installed: {how_to_install(name)}")
        if name == "wandb" and os.environ.get("RANK", "0") == "0" and (problem := _wandb_problem()):
            raise ValueError(f"log.trackers: wandb: {problem}: run `wandb login`, or set WANDB_MODE=offline")


def _wandb_problem() -> str:
    """Why W&B would not take this run, asked without a prompt: its own question comes after the reference pass."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return ""
    wandb = importlib.import_module("wandb")
    try:
        return "" if wandb.login(prompt=False) else "no login here"
    except TypeError:  # versions before `prompt`
        return "" if wandb.api.api_key else "no login here"
    except Exception as error:  # a wrong key, no network
        return str(error).split("\n")[0]


class Metrics:
    def __init__(
        self,
        folder: Path,
        *,
        trackers: Sequence[str] = (),
        project: str = "mmfast",
        name: str = "",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.file = self.path.open("a", encoding="utf-8")
        self.sinks = [_tracker(kind, folder, project, name or folder.name, settings or {}) for kind in trackers]

    def log(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, **{key: _number(value) for key, value in values.items()}}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for sink in self.sinks:
            sink.log(step, values)

    def close(self) -> None:
        self.file.close()
        for sink in self.sinks:
            sink.close()


def _number(value: float) -> float | str:
    """JSON has no NaN: non-finite numbers are written as strings."""
    return value if math.isfinite(value) else str(value)


def _tracker(kind: str, folder: Path, project: str, name: str, settings: dict[str, Any]) -> Any:
    check_trackers([kind])
    return _TensorBoard(folder) if kind == "tensorboard" else _Wandb(kind, project, name, settings)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """W&B and trackio share one interface."""

    def __init__(self, kind: str, project: str, name: str, settings: dict[str, Any]) -> None:
        self.module = importlib.import_module(kind)
        self.run = self.module.init(project=project, name=name, config=settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()
