"""The base model: a LLaVA of about a million parameters that describes pictures well, and truly hallucinates.

First its vision tower learns to name what each cell of the picture holds (without this, object recall came out anywhere
from .2 to .8), then the whole model learns from flawed captions.
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

from .dataset import read_lines, read_scenes
from .models import Size, build, save
from .scenes import KINDS, Scene, render

Progress = Callable[[str, int, int, float], None]  # (stage, step, steps, loss)


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    seed: int = 0
    size: str | Size = "world"
    warmup_steps: int = 250
    warmup_lr: float = 1e-3
    steps: int = 900
    batch: int = 64
    lr: float = 2e-3
    freeze_vision: bool = False


def pixels(images: Any, scenes: list[Scene]) -> Tensor:
    """[N, 3, H, W] as the image processor gives them."""
    parts = [images(images=[render(s) for s in scenes[i : i + 256]], return_tensors="pt")["pixel_values"]
             for i in range(0, len(scenes), 256)]  # fmt: skip
    return torch.cat(parts)


def cell_labels(scenes: list[Scene]) -> Tensor:
    """[N, 9]: 0 for an empty cell, else 1 + kind * 2 + size."""
    labels = torch.zeros(len(scenes), 9, dtype=torch.long)
    for n, scene in enumerate(scenes):
        for thing in scene.things:
            for cell in thing.cells:
                labels[n, cell] = 1 + 2 * KINDS.index(thing.kind) + (thing.size == "large")
    return labels


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))


def _run(
    parameters: list[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    steps: int,
    lr: float,
    report: Callable[[int, float], None],
) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps, 40)
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        report(step, loss.item())


def warm_up_vision(
    model: Any, pictures: Tensor, labels: Tensor, recipe: BaseRecipe, progress: Progress | None
) -> float:
    """Teaches the tower what each cell holds, read where LLaVA reads it; returns the accuracy on the last batches."""
    tower, device = model.model.vision_tower, model.device
    layer = model.config.vision_feature_layer
    edge = int(model.config.image_seq_length**0.5)
    head = nn.Linear(tower.config.hidden_size, 1 + 2 * len(KINDS)).to(device)
    order = _batches([0] * len(pictures), recipe.batch, recipe.seed)
    accuracy = 0.0

    def loss_of(step: int) -> Tensor:
        nonlocal accuracy
        rows = next(order)
        states = tower(pictures[rows].to(device), output_hidden_states=True).hidden_states[layer][:, 1:]
        grid = states.transpose(1, 2).unflatten(2, (edge, edge))
        logits = head(F.adaptive_avg_pool2d(grid, 3).flatten(2).transpose(1, 2))
        target = labels[rows].to(device)
        filled = target > 0
        accuracy = 0.95 * accuracy + 0.05 * (logits.argmax(-1) == target)[filled].float().mean().item()
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def report(step: int, loss: float) -> None:
        if progress:
            progress("vision", step + 1, recipe.warmup_steps, loss)

    _run([*tower.parameters(), *head.parameters()], loss_of, recipe.warmup_steps, recipe.warmup_lr, report)
    return accuracy


def _batches(lengths: list[int], batch: int, seed: int) -> Iterator[list[int]]:
    """Endless shuffled batches of rows of like length (sorted within chunks of sixteen batches), to pad little."""
    rng = random.Random(seed)
    while True:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        batches = []
        for start in range(0, len(order), 16 * batch):
            chunk = sorted(order[start : start + 16 * batch], key=lengths.__getitem__)
            batches += [chunk[i : i + batch] for i in range(0, len(chunk) - batch + 1, batch)]
        rng.shuffle(batches)
        yield from batches


def encode(tokenizer: Any, record: dict, slots: int) -> tuple[list[int], int]:
    """(token ids with the image's slots, where the answer starts). Prompt and answer are tokenised apart."""
    prompt = tokenizer.apply_chat_template(record["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(record["prompt"] + record["chosen"], tokenize=False)
    assert whole.startswith(prompt)
    head = tokenizer(prompt.replace("<image>", "<image>" * slots), add_special_tokens=False).input_ids
    return head + tokenizer(whole[len(prompt) :], add_special_tokens=False).input_ids, len(head)


def learn_captions(model: Any, tokenizer: Any, records: list[dict], pictures: Tensor, recipe: BaseRecipe,
                   progress: Progress | None) -> None:  # fmt: skip
    """Cross-entropy on the answers. pictures[n] belongs to records[n]."""
    device, slots = model.device, model.config.image_seq_length
    coded = [encode(tokenizer, record, slots) for record in records]
    order = _batches([len(tokens) for tokens, _ in coded], recipe.batch, recipe.seed + 1)
    if recipe.freeze_vision:
        model.model.vision_tower.requires_grad_(False)

    def loss_of(step: int) -> Tensor:
        rows = next(order)
        longest = max(len(coded[row][0]) for row in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), -100)
        for n, row in enumerate(rows):
            tokens, start = coded[row]
            ids[n, : len(tokens)] = torch.tensor(tokens)
            labels[n, start : len(tokens)] = torch.tensor(tokens[start:])
        ids, labels = ids.to(device), labels.to(device)
        # Padding stands on the right, where causal attention never sees it: no mask is needed.
        hidden = model.model(input_ids=ids, pixel_values=pictures[rows].to(device)).last_hidden_state
        scored = labels[:, 1:] >= 0
        return F.cross_entropy(model.lm_head(hidden[:, :-1][scored]), labels[:, 1:][scored])

    def report(step: int, loss: float) -> None:
        if progress:
            progress("captions", step + 1, recipe.steps, loss)

    model.train()
    _run([p for p in model.parameters() if p.requires_grad], loss_of, recipe.steps, recipe.lr, report)
    model.requires_grad_(True).eval()


def train_base(
    world: str | Path, path: str | Path, recipe: BaseRecipe | None = None, *, device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:  # fmt: skip
    """Trains the base model on `world`/base.jsonl and writes it to `path`."""
    recipe = recipe or BaseRecipe()
    world = Path(world)
    torch.manual_seed(recipe.seed)
    model, tokenizer, images, processor = build("llava", seed=recipe.seed, size=recipe.size)
    model.to(device)
    records = read_lines(world / "base.jsonl")
    by_name = {scene.name: scene for scene in read_scenes(world, "train")}
    scenes = [by_name[Path(record["images"][0]).stem] for record in records]
    pictures = pixels(images, scenes)
    accuracy = warm_up_vision(model, pictures, cell_labels(scenes), recipe, progress)
    learn_captions(model, tokenizer, records, pictures, recipe, progress)
    save(path, model.cpu(), tokenizer, images, processor)
    return {"cell_accuracy": accuracy}
