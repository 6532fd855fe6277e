"""recipes/*.toml: what each reproduces, and what it should take of a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmfast.config import Config, load

INSTALLED = Path(__file__).parents[1] / "recipe_files"  # of a wheel; beside the package in a checkout
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a published model, from its config: enough for an estimate without it."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tower: float  # parameters
    projector: float

    @property
    def block(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.mlp

    @property
    def ends(self) -> int:
        """Embedding and head."""
        return 2 * self.vocab * self.hidden

    def lora(self, r: int, targets: str) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {"q_proj": self.hidden + q, "k_proj": self.hidden + kv, "v_proj": self.hidden + kv}
        sizes |= {"o_proj": self.hidden + q} | dict.fromkeys(
            ("gate_proj", "up_proj", "down_proj"), self.hidden + self.mlp
        )
        names = sizes if targets == "language-linear" else targets.split(",")
        return self.layers * r * sum(sizes[name.strip()] for name in names)


CLIP = {"tower": 303.5e6}
SHAPES = {
    "llava-hf/llava-1.5-7b-hf": Shape(
        hidden=4096, layers=32, mlp=11008, heads=32, kv_heads=32, head_dim=128, vocab=32064, projector=21.0e6, **CLIP
    ),
    "llava-hf/llava-1.5-13b-hf": Shape(
        hidden=5120, layers=40, mlp=13824, heads=40, kv_heads=40, head_dim=128, vocab=32064, projector=31.5e6, **CLIP
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(
        hidden=3584,
        layers=28,
        mlp=18944,
        heads=28,
        kv_heads=4,
        head_dim=128,
        vocab=152064,
        tower=632e6,
        projector=44.6e6,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Shape(
        hidden=4096,
        layers=36,
        mlp=12288,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab=151936,
        tower=410e6,
        projector=167e6,
    ),
}


def memory_estimate(config: Config, gpus: int) -> dict[str, float]:
    """GiB of one GPU by part, in closed form (`mmfast plan` traces the model itself where its config is at hand)."""
    s = SHAPES[config.model.path]
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
        if config.model.path in SHAPES:
            gpus = gpus_of(path.stem) if not config.model.lora or "gpu" in path.stem else 1
            row |= {"gpus": gpus, "gib_per_gpu": round(sum(memory_estimate(config, gpus).values()), 1)}
        found.append(row)
    return found
