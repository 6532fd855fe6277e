"""papers.json: what came of a seed so far, written anew after every method, and captions.jsonl beside it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmfast.demo import processor_seconds, write_captions
from mmfast.files import write_json
from mmfast.papers.methods import FILES, METHODS, STEPS, WORLD_COMMIT, Made, Method
from mmfast.papers.work import CAPTIONS, Piece
from mmfast.world.dataset import read_lines, read_scenes

NAME = "papers.json"
PARTS = "notes/parts.json"


class Results:
    def __init__(self, folder: Path, seed: int, workers: int) -> None:
        self.folder, self.seed, self.began = folder, seed, time.monotonic()
        self.before = read(folder / NAME).get("seconds", 0.0)  # of earlier starts
        self.machine = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "cores": len(os.sched_getaffinity(0)),
            "workers": workers,
            "threads": 1,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        }
        self.parts: dict[str, dict[str, float]] = read(folder / PARTS)
        self.notes: dict[str, dict[str, Any]] = {}  # of steps and files
        self.methods: dict[str, dict[str, Any]] = {}
        self.without: dict[str, str] = {}
        self.captions: dict[str, list[str]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What the world and the base model cost: of the start that made them."""
        began, used = time.monotonic(), processor_seconds()
        yield
        cost = {"seconds": time.monotonic() - began, "processor_seconds": processor_seconds() - used}
        if cost["processor_seconds"] > self.parts.get(name, {}).get("processor_seconds", 0.0):
            self.parts[name] = cost
            (self.folder / PARTS).parent.mkdir(exist_ok=True)
            write_json(self.folder / PARTS, self.parts)

    def take(self, piece: Piece, note: dict[str, Any]) -> None:
        """A piece that is done."""
        what = piece.what
        if why := note.get("nothing"):
            self.without[what.name] = why
        if not isinstance(what, Method):
            self.notes[what.name + ".jsonl" * isinstance(what, Made)] = note
            return
        if not why:
            self.methods[what.name] = self._row(what, note)
            self.captions[what.name] = json.loads((piece.home / CAPTIONS).read_text())
        self.write()

    def _row(self, one: Method, note: dict[str, Any]) -> dict[str, Any]:
        made = self.notes.get(f"{one.of}.jsonl", {})
        told = {name: getattr(one, name) for name in ("label", "system", "blind", "control", "start")}
        told |= {"pairs": made.get("rows", 0), "made": self._made(one.of, made), "settings": dict(one.settings)}
        told |= {f"words_{side}": made.get(f"words_{side}") for side in ("chosen", "rejected")}
        told |= {name: note[name] for name in ("seconds", "processor_seconds", "score", "counted")}
        return told

    def _made(self, file: str, made: dict[str, Any]) -> dict[str, Any]:
        """Prompts and answers behind a file of training data, its rows, and why others are not among them."""
        counts: dict[str, Any] = {}
        name = next((one.of for one in FILES if one.name == file), "")
        while name:
            step = next(one for one in STEPS if one.name == name)
            found = self.notes.get(name, {}).get("made", {})
            if step.do == "answers":
                counts = {"prompts": found.get("prompts", 0), "answers": found.get("rows", 0)}
            name = step.of
        return counts | made.get("counts", {}) | ({"rows": made["rows"]} if made else {})

    def value(self, *, complete: bool = False) -> dict[str, Any]:
        notes = [*self.parts.values(), *self.notes.values(), *self.methods.values()]
        cost = ("seconds", "processor_seconds")
        steps = {name: {key: note[key] for key in cost} for name, note in self.parts.items()}
        steps |= {
            name: {key: note[key] for key in cost} | {"made": note.get("made", note.get("counts", {}))}
            for name, note in self.notes.items()
            if "seconds" in note
        }
        return {
            "seed": self.seed,
            "world_commit": WORLD_COMMIT,
            "machine": self.machine,
            "seconds": self.before + time.monotonic() - self.began,
            "processor_seconds": sum(note.get("processor_seconds", 0.0) for note in notes),
            "complete": complete,
            "steps": steps,
            "planned": {name: one.label for name, one in METHODS.items()},
            "methods": {name: self.methods[name] for name in METHODS if name in self.methods},
            "without": self.without,
        }

    def write(self, *, complete: bool = False) -> dict[str, Any]:
        value = self.value(complete=complete)
        write_json(self.folder / NAME, value)
        scenes = read_scenes(self.folder / "world")
        truths = [row["chosen"][0]["content"][0]["text"] for row in read_lines(self.folder / "world" / "test.jsonl")]
        texts = {name: self.captions[name] for name in METHODS if name in self.captions}
        write_captions(self.folder / "captions.jsonl", scenes, texts, truths)
        return value


def read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}
