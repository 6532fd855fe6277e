"""Gemma-3: a SigLIP tower at a fixed size, pooled. Its images see themselves whole, so its trees are not shared; the
general adapter runs it and proves it at load. Here stands what the data must know of its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmfast.families.base import BILINEAR, HALVES
from mmfast.families.generic import Generic


class Gemma3(Generic):
    image_aspect = "square"
    image_mean, image_std, image_resample = HALVES, HALVES, BILINEAR

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        return int(model.get("mm_tokens_per_image", 256))

    @classmethod
    def image_text(cls, model: dict[str, Any], image: str, token: Callable[[int], str]) -> tuple[str, str] | None:
        """The template writes the mark that begins an image and no more."""
        begin, end = token(model.get("boi_token_index", 255_999)), token(model.get("eoi_token_index", 256_000))
        return begin, f"\n\n{begin}{image}{end}\n\n"
