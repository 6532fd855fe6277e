"""recipes/*.toml: what each reproduces, and what it should take of a GPU's memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmfast.config import Config, load
from mmfast.families import families
from mmfast.families.sizes import Sizes

INSTALLED = Path(__file__).parents[1] / "recipe_files"  # of a wheel; beside the package in a checkout
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "recipes"


@cache
def published_sizes() -> dict[str, Sizes]:
    """Hub ids -> sizes of the models that the families' files name."""
    return {name: sizes for family in families().values() for name, sizes in family.published.items()}


def memory_estimate(config: Config, gpus: int) -> dict[str, float]:
    """GiB of one GPU by part, in closed form (`mmfast plan` traces the model itself where its config is at hand)."""
    s = published_sizes()[config.model.path]
    m, p = config.model, config.parallel
    shards = {"full": gpus, "hybrid": p.shard_size or min(gpus, 8), "none": 1}[p.shard]
    language = s.layers * s.block + s.ends
    trained = s.lora(m.lora.r, m.lora.targets) if m.lora else language
    trained += 0 if "projector" in m.freeze else s.projector
    frozen = language if m.lora else 0.0
    base_bytes = 0.55 if m.quantize else 2.0  # nf4 with its block scales
    weights = (frozen * base_bytes + trained * 4) / shards + s.tower * 2
    weights += (2 * s.block + s.ends) * 2 * (shards > 1 or not m.lora)  # two gathered blocks, embedding and head
    tokens = config.train.tokens_per_pack
    kept = tokens * s.hidden * 2 * s.layers if p.activation_checkpointing else tokens * s.layers * 34 * s.hidden
    working = tokens * 2 * (12 * s.hidden + 5 * s.mlp)  # one block, forward and backward
    head = 2**30 + 2**26 + (0 if m.lora else 4 * s.vocab * s.hidden)
    parts = {
        "weights": weights,
        "gradients": trained * 4 / shards,
        "optimiser": trained * 8 / shards,
        "activations": kept + working,
        "head": head,
    }
    return {name: value / 2**30 for name, value in parts.items()}


def gpus_of(name: str) -> int:
    """Of a recipe, by its name; the published full ones are estimated on 8."""
    end = name.rsplit("_", 1)[-1]
    return int(end.removesuffix("gpu")) if end.endswith("gpu") else 8


def recipes(folder: Path | str = FOLDER) -> list[dict[str, str | float]]:
    """Every recipe, loaded and checked: name, what it reproduces, GPUs assumed and the estimated GiB of each."""
    found: list[dict[str, str | float]] = []
    for path in sorted(Path(folder).glob("*.toml")):
        config = load(path)
        row: dict[str, str | float] = {"name": path.stem, "about": config.about, "path": str(path)}
        if config.model.path in published_sizes():
            gpus = gpus_of(path.stem) if not config.model.lora or "gpu" in path.stem else 1
            row |= {"gpus": gpus, "gib_per_gpu": round(sum(memory_estimate(config, gpus).values()), 1)}
        found.append(row)
    return found
