"""One piece of work in a process of its own: a step, a file of training data, or a training run and its captions.

A piece is done when its note says so, NOTE.json: the stamp of its settings and of all that it was made of, what it
cost, and what came of it. What a killed start left of a piece goes, and the piece is made anew.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfast.config import build
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.evals.world import score
from mmfast.files import write_json
from mmfast.pages import png
from mmfast.papers import data
from mmfast.papers.methods import BLIND, MAX_TOKENS, Made, Method, Scale, Step
from mmfast.train import train
from mmfast.world.base import align_settings
from mmfast.world.dataset import read_scenes
from mmfast.world.grammar import CAPTION_PROMPTS
from mmfast.world.scenes import Scene, render

COUNTED, CAPTIONS = "counted.npy", "captions.json"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is to be done, in a seed's folder, and by which stamp it is known."""

    what: Step | Made | Method
    folder: Path
    seed: int
    scale: Scale
    stamp: str
    threads: int = 1

    @property
    def home(self) -> Path:
        name = self.what.name
        if isinstance(self.what, Method):
            return self.folder / name
        return self.folder / ("steps" if isinstance(self.what, Step) else "data") / name

    @property
    def note(self) -> Path:
        return self.folder / "notes" / f"{self.what.name}-{type(self.what).__name__.lower()}.json"

    def done(self) -> dict[str, Any] | None:
        """Its note, where it stands."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return None
        made = self.home.with_suffix(".jsonl") if isinstance(self.what, Made) else self.home
        there = made.exists() or "nothing" in note
        return note if isinstance(note, dict) and note.get("stamp") == self.stamp and there else None


def model_of(folder: Path, method: str) -> Path:
    """Where the model of a method lies; "" is the base."""
    return folder / (method or "base") / "export" / "hf"


def do(piece: Piece) -> dict[str, Any]:
    """Does a piece and writes its note. What it says goes to a log."""
    torch.set_num_threads(piece.threads)
    began, used = time.monotonic(), _processor()
    log = piece.folder / "logs" / f"{piece.what.name}.log"
    for folder in (log.parent, piece.note.parent):
        folder.mkdir(exist_ok=True)
    piece.note.unlink(missing_ok=True)
    _forget(piece)
    if not (isinstance(piece.what, Method) and piece.what.system == "base"):
        shutil.rmtree(piece.home, ignore_errors=True)
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            made = _made(piece)
        except data.Nothing as error:
            made = {"nothing": str(error)}
    cost = {"seconds": time.monotonic() - began, "processor_seconds": _processor() - used}
    note = {"stamp": piece.stamp, **cost, **made}
    write_json(piece.note, note)
    return note


def _forget(piece: Piece) -> None:
    """Reference log-probs by a model, or of a file, that is made anew."""
    pattern = {Method: f"{piece.what.name}+*", Made: f"*+{piece.what.name}*"}.get(type(piece.what), "")
    for old in (piece.folder / "reference").glob(pattern) if pattern else ():
        shutil.rmtree(old, ignore_errors=True)


def _made(piece: Piece) -> dict[str, Any]:
    what = piece.what
    if isinstance(what, Step):
        return {"made": data.take(what, piece.folder, model_of(piece.folder, what.model), piece.seed)}
    if isinstance(what, Made):
        return data.make(what, piece.folder, piece.seed)
    if what.system != "base":
        train(build(settings_of(piece)))
        shutil.rmtree(piece.home / "checkpoints", ignore_errors=True)
    return judged(piece)


def settings_of(piece: Piece) -> dict[str, Any]:
    """The config of a method's training. No pairs are held out: their reward accuracy is no measure (docs/world.md)."""
    one, folder, scale = piece.what, piece.folder, piece.scale
    assert isinstance(one, Method)
    file = one.of + BLIND * one.blind
    flat = {key: value for key, value in one.settings.items() if not isinstance(value, dict)}
    legacy = one.settings.get("objective", {}).get("compat", "")  # what it reads of the reference is its own
    reference = folder / "reference" / "+".join(filter(None, (one.start or "base", file, legacy)))
    start = model_of(folder, one.start)
    settings = align_settings(
        folder / "data", start, piece.home, reference=reference, seed=piece.seed, steps=scale.steps,
        pairs=f"{file}.jsonl", **flat,
    )  # fmt: skip
    del settings["data"]["eval_path"]
    settings["train"]["pairs_per_step"] = scale.per_step
    settings["parallel"]["threads"] = piece.threads
    settings["log"] |= {"progress": False}
    for section, more in one.settings.items():
        if isinstance(more, dict):
            settings[section] |= more
    return settings


def judged(piece: Piece) -> dict[str, Any]:
    """Captions of the held-out pictures, and their score."""
    one, folder = piece.what, piece.folder
    assert isinstance(one, Method)
    scenes = read_scenes(folder / "world")
    firsts = json.loads((folder / "base" / CAPTIONS).read_text()) if one.again else []
    texts = captions(model_of(folder, "" if one.system == "base" else one.name), scenes, one.prompt, one.again, firsts)
    found = score(texts, scenes)
    write_json(piece.home / CAPTIONS, texts)
    np.save(piece.home / COUNTED, found.counted)
    return {"score": found.as_dict(), "counted": str((piece.home / COUNTED).relative_to(folder))}


def captions(
    model: Path, scenes: Sequence[Scene], prompt: str = "", again: str = "", firsts: Sequence[str] = ()
) -> list[str]:
    """Greedy answers. `again`: what is asked in a second turn, `firsts` being the answers of the first."""
    content = [{"type": "image"}, {"type": "text", "text": prompt or CAPTION_PROMPTS[0]}]
    asked = []
    for number, scene in enumerate(scenes):
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if again:
            turns += [{"role": "assistant", "content": firsts[number]}, {"role": "user", "content": again}]
        shown = (Picture(scene.name, png(render(scene))),)
        decode = Decode(max_tokens=MAX_TOKENS)
        asked.append(Request(key=str(number), messages=tuple(turns), images=shown, decode=decode))
    texts = [""] * len(asked)
    for reply in Local(str(model), device=data.device()).answer(asked):
        if reply.error:
            raise ValueError(f"caption {reply.key}: {reply.error}")
        texts[int(reply.key)] = reply.text
    return texts


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
