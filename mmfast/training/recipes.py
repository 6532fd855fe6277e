"""recipes/*.toml: what each reproduces, and what it should take of a GPU's memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig

from mmfast.config import Config, load
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.families import drawn_config, families
from mmfast.families.base import Adapter
from mmfast.models.estimate import Memory, estimate
from mmfast.packing import build_pack
from mmfast.packing.pack import Pack
from mmfast.training.forecast import GPUS_PER_NODE, alone, setting_of, sketch

INSTALLED = Path(__file__).parents[1] / "recipe_files"  # of a wheel; beside the package in a checkout
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "recipes"
ROUNDS = "rounds_"
PROMPT, RESPONSE, PIXELS = 64, 128, 1280 * 28 * 28  # tokens, and pixels of an image whose size is free


@cache
def published() -> dict[str, PretrainedConfig]:
    """Hub ids -> configs of the models that the families' files name."""
    kinds = families().items()
    return {model: drawn_config(name, **sizes) for name, kind in kinds for model, sizes in kind.published.items()}


def memory_estimate(config: Config, gpus: int) -> Memory:
    """Of one of `gpus` GPUs, as `mmfast plan` tells it, without the model's directory and for made-up data."""
    job = alone(config)
    scorer = sketch(job, published()[config.model.path])
    pack = usual_pack(scorer.adapter, config)
    return estimate(scorer, pack, setting_of(job, scorer, gpus, GPUS_PER_NODE, "cuda", micro_batches=2))


def usual_pack(adapter: Adapter, config: Config) -> Pack:
    """As many pairs of an image, a prompt and two responses as a pack takes; the last prompt fills it."""
    layout, model = adapter.layout(), adapter.config.to_dict()
    edge, patch = adapter.tower_square(model)
    native = adapter.image_aspect == "native"
    side = int((config.model.max_pixels or PIXELS) ** 0.5 if native else edge or 0) // patch // adapter.merge_size
    slots = side**2 if native else adapter.square_slots(model, side)
    grid = (1, side * adapter.merge_size, side * adapter.merge_size)
    each, draw = slots + PROMPT + 2 * RESPONSE, np.random.default_rng(0)
    count, rest = max(1, config.train.tokens_per_pack // each), max(0, config.train.tokens_per_pack % each)
    examples, images = [], {}
    for number in range(count):
        image = str(number)
        images[image] = ImageInfo(id=image, source="", width=0, height=0, tokens=slots, grid=grid)
        words = draw.integers(1000, size=(2, PROMPT + (rest if number == 0 else 0) + RESPONSE), dtype=np.int32)
        words[words == layout.image_token_id] += 1
        words[:, 0] = layout.image_token_id or 0
        words[1, :-RESPONSE] = words[0, :-RESPONSE]
        span = ((words.shape[1] - RESPONSE, words.shape[1]),)
        sides = [Branch(ids=ids, images=(image,), spans=span) for ids in words]
        pair = config.objective.kind == "dpo"
        examples.append(Example(id=image, source="", chosen=sides[0], rejected=sides[1] if pair else None))
    return build_pack(examples, images, layout, gamma=config.objective.gamma)


def gpus_of(name: str) -> int:
    """Of a recipe, by its name; the published full ones are estimated on 8."""
    end = name.rsplit("_", 1)[-1]
    return int(end.removesuffix("gpu")) if end.endswith("gpu") else 8


def names() -> list[str]:
    """Of the recipes of one training; those of whole systems are for `mmfast rounds`."""
    return [path.stem for path in sorted(FOLDER.glob("*.toml")) if not path.stem.startswith(ROUNDS)]


def recipe_file(name: str) -> Path:
    return FOLDER / f"{name}.toml"


def recipes() -> list[dict[str, str | float]]:
    """Every recipe, loaded and checked: name, what it reproduces, GPUs assumed and the estimated GiB of each."""
    rows: list[dict[str, str | float]] = []
    known: dict[str, float] = {}  # recipes that differ in their data or rates alone take the same
    for path in map(recipe_file, names()):
        config = load(path)
        rows.append({"name": path.stem, "about": config.about, "path": str(path)})
        if config.model.path in published():
            gpus = gpus_of(path.stem) if not config.model.lora or "gpu" in path.stem else 1
            o, t = config.optim, config.train
            key = repr(
                (gpus, config.model, config.parallel, o.name, o.master, t.tokens_per_pack, config.objective.kind)
            )
            known[key] = known.get(key) or round(memory_estimate(config, gpus).total / 2**30, 1)
            rows[-1] |= {"gpus": gpus, "gib_per_gpu": known[key]}
    return rows
