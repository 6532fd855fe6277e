"""The run itself: the recipe's rounds with the paper's overrides, on a share if that is asked, up to a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mmfast.engines.inputs import count_rows
from mmfast.reproduce.paper import Paper
from mmfast.rounds import choice, loop
from mmfast.rounds.launch import Machine, Ranks
from mmfast.rounds.settings import Options, Settings, load

LEAST = 8  # rows of prompts or pairs
BASE = "base"  # a stage: the base's benchmarks


def settings_of(paper: Paper, root: Path, name: str, scale: float, given: Sequence[str], known: Options) -> Settings:
    """The rounds' settings. `given`: the user's own overrides, which win; a share is of what is there."""
    folder = root / "runs" / (name if scale == 1 else f"{name}-{scale:g}")
    plain = [*paper.overrides_at(root), f"output_dir={folder}"]
    whole = load(paper.recipe_file, [*plain, *given], known)
    return whole if scale == 1 else load(paper.recipe_file, [*plain, *shares(whole, scale), *given], known)


def shares(whole: Settings, scale: float) -> list[str]:
    """Overrides that run every stage on a share: of prompts or pairs, of the warm-up's steps, of each benchmark."""
    out = []
    # What is asked; or, where pairs are there already, what is trained on
    path = whole.prompts.path or next((one.file for one in whole.pairs if one.file), "")
    rows = whole.prompts.limit or (count_rows(Path(path)) if path and Path(path).exists() else 0)
    if rows:
        out.append(f"{'prompts' if whole.prompts.path else 'data'}.limit={share(rows, scale)}")
    warmup = whole.training.get("optim", {}).get("warmup", 0)
    if warmup >= 1:  # steps; below 1 it is a share already
        out.append(f"optim.warmup={math.floor(warmup * scale)}")
    every = whole.training.get("train", {}).get("checkpoint_every", 0)
    if every:
        out.append(f"train.checkpoint_every={max(1, math.ceil(every * scale))}")
    if whole.judged:
        out.append(f"evaluate.limit={scale:g}")  # of each benchmark
    return out


def share(rows: int, scale: float) -> int:
    return min(rows, max(LEAST, math.ceil(rows * scale)))


def stages(settings: Settings) -> list[str]:
    """What --upto may name: of the first round, each stage once."""
    asked = ["answers", *(one.name for one in settings.feedback)] if settings.prompts.path else []
    made = [one.name for one in settings.pairs if not one.file]
    judged = ["eval"] if settings.judged else []
    return [*([BASE] if settings.judged else []), *asked, *made, "run", *judged]


def run(
    settings: Settings,
    crew: Machine | Ranks,
    console: Console,
    *,
    report: Callable[[Settings], Path],
    upto: str = "",
) -> None:
    """All rounds; or the steps up to a stage of the first, as the rounds would do them. The same call goes on."""
    if not upto:
        loop.run(settings, crew, console, report=report)
        return
    loop.readable(settings)
    if settings.judged:
        choice.check(settings)
    for step in loop.steps_of(settings):
        loop.take(step, crew, console)
        if (BASE if step.round == 0 else step.name) == upto:
            return
