"""A tiny LLaVA and a few preference pairs of the embedded world, on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mmfast.config import Config, build
from mmfast.world.grammar import Flaws, caption
from mmfast.world.models import tiny_model
from mmfast.world.scenes import render, scenes

FLAWS = Flaws(1.0, 1.0, 1.0, 0.3, 0.3)


def write_pairs(
    folder: Path, number: int, *, name: str = "pairs.jsonl", text_only: int = 0, split: str = "train"
) -> Path:
    """`number` pairs, two questions a picture; of them `text_only` without a picture."""
    rng = random.Random(f"{name}{split}")
    rows = []
    questions = ("Describe the picture.", "What do you see here?")
    for i, scene in enumerate(scenes(0, split, number)):
        picture = f"{split}-{i // 2}.png"
        if i % 2 == 0:
            render(scene).save(folder / picture)
            shown = scene
        flawed = caption(shown, rng, FLAWS)
        row = {
            "id": f"{split}{i}",
            "images": [picture],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": questions[i % 2]}]}],
            "chosen": [{"role": "assistant", "content": f"{flawed.truth} {i}"}],
            "rejected": [{"role": "assistant", "content": f"{flawed.text} no {i}"}],
        }
        if i < text_only:
            row["images"] = []
            row["prompt"] = [{"role": "user", "content": questions[i % 2]}]
        rows.append(row)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_model(folder: Path, family: str = "llava", **dials) -> Path:
    return tiny_model(family, folder / family, **dials)


def make_config(folder: Path, model: Path, data: Path, **changes) -> Config:
    """`changes` are dotted keys: {"train.steps": 4}."""
    tree: dict = {}
    given = {
        "output_dir": str(folder / "run"),
        "model.path": str(model),
        "model.dtype": "float32",
        "data.path": str(data),
        "data.workers": 0,
        "data.cache": str(folder / "cache"),
        "train.pairs_per_step": 4,
        "train.tokens_per_pack": 400,
        "train.steps": 4,
        "optim.lr": 1e-3,
        "optim.warmup": 0.0,
        "parallel.threads": 1,
        "parallel.activation_checkpointing": False,
        "log.progress": False,
        "export.formats": [],
    } | changes
    for key, value in given.items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return build(tree)
