"""What packing needs to know of a model family. An adapter fills this in; nothing here reads a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmfast.data.records import ImageInfo


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where images stand in a sequence, and how positions run through them."""

    image_token_id: int | None  # None: a text-only model
    mrope: bool = False  # positions are (t, h, w): Qwen2-VL, 2.5 and 3
    merge: int = 1  # patches merged on each side before the decoder sees them
    longest: int = 0  # tokens of a sequence that the model reads as it is trained; 0: any number
    share: bool = True  # False: the model cannot be run as a tree; only wholly equal sequences become one

    def merged_grid(self, image: ImageInfo) -> tuple[int, int, int]:
        """(t, h, w) in slots."""
        if image.grid is None:
            raise ValueError(f"image {image.id} ({image.source}): M-RoPE needs ImageInfo.grid, it is None")
        t, h, w = image.grid
        slots = (t, h // self.merge, w // self.merge)
        if int(np.prod(slots)) != image.tokens:
            raise ValueError(
                f"image {image.id} ({image.source}): grid {image.grid} with merge {self.merge} has "
                f"{int(np.prod(slots))} slots, but ImageInfo.tokens is {image.tokens}"
            )
        return slots

    def advance(self, image: ImageInfo) -> int:
        """How far an image moves the position of what follows: 1 + the largest position on any axis of it."""
        return max(self.merged_grid(image)) if self.mrope else image.tokens
