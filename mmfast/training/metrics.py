"""Where the numbers and samples of a run go: metrics.jsonl and samples.jsonl always, and TensorBoard, W&B or trackio
where asked. Metric names are TRL's. Only rank 0 has a Metrics.

The trackers know a run by an id of its own, which lies in its folder: a run that goes on is one run there too.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.files import write_json
from mmfast.packages import how_to_install
from mmfast.pages import small

NEEDED = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "trackio": ("trackio", "pandas")}  # pandas: its tables
TRACKED = "trackers.json"  # the run's id for them
EDGE = 320  # pixels of a sample's picture
TEXTS = ("prompt", "answer", "chosen", "rejected")


def check_trackers(names: Sequence[str]) -> None:
    """Raise before anything expensive if a tracker that was asked for is not installed."""
    for name in names:
        if missing := [one for one in NEEDED[name] if importlib.util.find_spec(one) is None]:
            what = "" if missing[0] == name else f" needs {missing[0]}, which"
            raise ValueError(f"log.trackers: {name!r}{what} is not installed: {how_to_install(name)}")
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
        trackers: Sequence[str] = (),
        project: str = "mmfast",
        name: str = "",
        *,
        settings: dict[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """`step`: the one that the run goes on from."""
        check_trackers(trackers)
        self.folder = folder
        self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.sinks: list[Any] = []
        for kind in trackers:
            if kind == "tensorboard":
                self.sinks.append(_TensorBoard(folder, step, settings or {}))
            else:
                named = (project, name or folder.name, _id(folder))
                self.sinks.append(_Wandb(kind, folder, *named, settings or {}))

    def log(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, **{key: _number(value) for key, value in values.items()}}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for sink in self.sinks:
            sink.log(step, values)

    def log_samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """`samples`: images (PNG in base64), prompt, answer, and the data's chosen and rejected."""
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}) + "\n")
        for sink in self.sinks if samples else ():
            sink.log_samples(step, samples)

    def close(self) -> None:
        self.file.close()
        for sink in self.sinks:
            sink.close()


def _number(value: float) -> float | str:
    """JSON has no NaN: non-finite numbers are written as strings."""
    return value if math.isfinite(value) else str(value)


def _id(folder: Path) -> str:
    """Made once; it is set aside with a line of starts that is given up (job/runfolder.py)."""
    path = folder / TRACKED
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text())["id"])


def _pictures(sample: dict[str, Any]) -> list[Any]:
    return [small(base64.b64decode(data), EDGE) for data in sample.get("images", ())]


class _TensorBoard:
    def __init__(self, folder: Path, step: int, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote beyond its checkpoint is not shown
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.writer.add_text("config", _as_it_is(json.dumps(settings, indent=1)), step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def log_samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        import numpy as np

        for number, sample in enumerate(samples):
            for place, picture in enumerate(_pictures(sample)):
                self.writer.add_image(f"samples/{number}.{place}", np.asarray(picture), step, dataformats="HWC")
            said = "\n\n".join(f"**{key}**\n\n{_as_it_is(str(sample[key]))}" for key in TEXTS if sample.get(key))
            self.writer.add_text(f"samples/{number}", said, step)

    def close(self) -> None:
        self.writer.close()


def _as_it_is(text: str) -> str:
    """A block of code in Markdown, which changes nothing in it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


class _Wandb:
    """W&B and trackio share one interface, but for what names a run: trackio has only its name."""

    def __init__(self, kind: str, folder: Path, project: str, name: str, run: str, settings: dict[str, Any]) -> None:
        self.kind, self.module = kind, importlib.import_module(kind)
        own = {"id": run, "name": name, "dir": str(folder)} if kind == "wandb" else {"name": f"{name}-{run}"}
        self.run = self.module.init(project=project, config=settings, resume="allow", **own)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def log_samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        shown = [[self.module.Image(one) for one in _pictures(sample)] for sample in samples]
        most = max(map(len, shown))
        columns = [f"picture {n + 1}" if n else "picture" for n in range(most)] + list(TEXTS)
        rows = [
            [*own, *[None] * (most - len(own)), *(sample.get(key, "") for key in TEXTS)]
            for own, sample in zip(shown, samples, strict=True)
        ]
        if self.kind == "trackio":
            from pandas import DataFrame

            table = self.module.Table(dataframe=DataFrame(rows, columns=columns, dtype=object))
        else:
            table = self.module.Table(columns=columns, data=rows)
        self.run.log({"samples": table}, step=step)

    def close(self) -> None:
        self.run.finish()
