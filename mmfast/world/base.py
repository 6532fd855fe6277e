"""The base model, before it has words: a LLaVA of a little over a million parameters whose vision tower can see.

The tower first learns to name what each cell of the picture holds, the word in it, which cell it is and the ground:
all that a caption says or a flaw's trigger needs (without this, object recall came out anywhere from .2 to .8, and
words were never read). Its words come from flawed captions, through mmfast.train's SFT objective like any other
model's: base.jsonl teaches it to describe well, and to hallucinate. `base_settings` are the config of that run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dataset import read_scenes
from .models import Size, build, save
from .scenes import KINDS, WORDS, Scene, render


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    seed: int = 0
    size: str | Size = "world"
    steps: int = 300
    batch: int = 32
    lr: float = 1e-3
    scenes: int = 4000


def pixels(images: Any, scenes: list[Scene]) -> Tensor:
    """[N, 3, H, W] as the image processor gives them."""
    blocks = [scenes[i : i + 256] for i in range(0, len(scenes), 256)]
    return torch.cat([images(images=[render(s) for s in b], return_tensors="pt")["pixel_values"] for b in blocks])


def cell_labels(scenes: list[Scene]) -> Tensor:
    """[N, 9, 4]: what a cell holds (0 if empty, else 1 + 2 * kind, and one more if it is large), the word on it (0 if
    none), which cell it is, and whether the ground is dark."""
    labels = torch.zeros(len(scenes), 9, 4, dtype=torch.long)
    labels[..., 2] = torch.arange(9)
    for n, scene in enumerate(scenes):
        labels[n, :, 3] = scene.background == "dark"
        for thing in scene.things:
            for cell in thing.cells:
                labels[n, cell, 0] = 1 + 2 * KINDS.index(thing.kind) + (thing.size == "large")
                labels[n, cell, 1] = 1 + WORDS.index(thing.word) if thing.word else 0
    return labels


def _batches(rows: int, batch: int, seed: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    while True:
        order = list(range(rows))
        rng.shuffle(order)
        yield from (order[i : i + batch] for i in range(0, rows - batch + 1, batch))


def warm_up_vision(
    model: Any, pictures: Tensor, labels: Tensor, recipe: WarmUp, progress: Callable[[int, int], None] | None = None
) -> float:
    """Teaches the tower what each cell holds, in the layer that LLaVA reads; returns how many of the filled cells of
    the last few batches it named right."""
    # A linear head over the tower's features, pooled to the 3 x 3 cells
    tower, device = model.model.vision_tower, model.device
    edge = int(model.config.image_seq_length**0.5)
    classes = (1 + 2 * len(KINDS), 1 + len(WORDS), 9, 2)
    head = nn.Linear(tower.config.hidden_size, sum(classes)).to(device)
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.01)
    order = _batches(len(pictures), recipe.batch, recipe.seed)
    right = filled = 0
    for step in range(recipe.steps):
        optimiser.param_groups[0]["lr"] = recipe.lr * min((step + 1) / 20, (recipe.steps - step) / recipe.steps)
        rows = next(order)
        states = tower(pictures[rows].to(device), output_hidden_states=True)
        features = states.hidden_states[model.config.vision_feature_layer][:, 1:]
        grid = features.transpose(1, 2).unflatten(2, (edge, edge))
        logits = head(F.adaptive_avg_pool2d(grid, 3).flatten(2).transpose(1, 2))
        # Object, word, place, ground of each cell
        target = labels[rows].to(device)
        what, word, place, ground = logits.split(classes, dim=-1)
        loss = F.cross_entropy(what.flatten(0, 1), target[..., 0].flatten())
        single = target[..., 0] > 0
        loss = loss + F.cross_entropy(word[single], target[..., 1][single])
        loss = loss + F.cross_entropy(place.flatten(0, 1), target[..., 2].flatten())
        loss = loss + 0.3 * F.cross_entropy(ground.flatten(0, 1), target[..., 3].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step >= recipe.steps - 10:
            right += int((what.argmax(-1) == target[..., 0])[single].sum())
            filled += int(single.sum())
        if progress:
            progress(step + 1, recipe.steps)
    return right / filled


def seeing_model(
    world: str | Path, path: str | Path, recipe: WarmUp | None = None, *, device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> float:  # fmt: skip
    """Makes the model, warms up its eyes on the world's training pictures and writes it to `path`."""
    recipe = recipe or WarmUp()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer, images, processor = build("llava", seed=recipe.seed, size=recipe.size)
        model.to(device)
        scenes = read_scenes(world, "train")[: recipe.scenes]
        accuracy = warm_up_vision(model, pixels(images, scenes), cell_labels(scenes), recipe, progress)
    save(path, model.cpu(), tokenizer, images, processor)
    return accuracy


def base_settings(
    world: str | Path, seeing: str | Path, out: str | Path, *, seed: int = 0, steps: int = 1000
) -> dict[str, Any]:
    """The config by which mmfast.train gives the seeing model its words. The tower stays as it is."""
    optim = {"lr": 3e-3, "betas": [0.9, 0.98], "schedule": "linear", "warmup": min(40, steps), "weight_decay": 0.01}
    sft = {"objective": {"kind": "sft"}, "reference": {"kind": "none"}, "optim": optim, "log": {"every": 10}}
    return _settings(seeing, out, seed, steps, {"path": str(Path(world) / "base.jsonl")}) | sft


def align_settings(
    world: str | Path, base: str | Path, out: str | Path, *, reference: str | Path, seed: int = 0, steps: int = 100,
    gamma: float = 1.0, sft_weight: float = 0.0, lr: float = 5e-4, kind: str = "dpo", pairs: str = "pairs.jsonl",
) -> dict[str, Any]:  # fmt: skip
    """The config of an alignment run on the world's pairs: DPO, DDPO with gamma above 1, or SFT on the chosen texts."""
    objective: dict[str, Any] = {"kind": "sft"}
    if kind == "dpo":
        objective = {"kind": "dpo", "loss": "sigmoid", "beta": 0.1, "gamma": gamma}
        objective |= {"segments": "clean", "sft_weight": sft_weight}
    data = {"path": str(Path(world) / pairs), "eval_path": str(Path(world) / "eval.jsonl")}
    return _settings(base, out, seed, steps, data) | {
        "objective": objective,
        "reference": {"kind": "cached", "path": str(reference)} if kind == "dpo" else {"kind": "none"},
        "optim": {"lr": lr, "schedule": "cosine", "warmup": 0.1},
        "log": {"every": 5},
    }


def _settings(model: str | Path, out: str | Path, seed: int, steps: int, data: dict[str, str]) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "seed": seed,
        "model": {"path": str(model), "dtype": "float32", "freeze": ["vision"]},
        "data": data | {"workers": 0},
        "train": {"steps": steps, "pairs_per_step": 32, "tokens_per_pack": 4096, "checkpoint_every": 0},
        "parallel": {"shard": "none", "activation_checkpointing": False},
    }
