"""Sizes of models, for estimates of memory: of published ones from numbers, of a tower from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLIP_LARGE = 303.5e6  # parameters of CLIP ViT-L/14 at 336 pixels


@dataclass(frozen=True, kw_only=True)
class Sizes:
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


@dataclass(frozen=True)
class TowerSizes:
    hidden: int
    depth: int
    inner: int  # of the MLP
    pixels: int  # values of one patch

    @classmethod
    def of(cls, vision: dict[str, Any]) -> TowerSizes:
        """By the names of CLIP and SigLIP, or of Qwen's towers, whose `hidden_size` may be the decoder's."""
        hidden = vision.get("embed_dim") or vision["hidden_size"]
        return cls(
            hidden=hidden,
            depth=vision.get("depth") or vision["num_hidden_layers"],
            inner=vision.get("intermediate_size") or hidden * vision.get("mlp_ratio", 4),
            pixels=vision["patch_size"] ** 2 * 3 * vision.get("temporal_patch_size", 1),
        )
