"""PaliGemma, which is refused by name: how its images would be read is known, how its prompts are is the reason."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from mmfast.families.base import HALVES
from mmfast.families.generic import Generic


class PaliGemma(Generic):
    image_aspect = "square"
    image_mean, image_std = HALVES, HALVES

    def __init__(self, config: PretrainedConfig):  # its token types tell prompt from answer, not images from text
        raise ValueError(
            "paligemma: its prompt is read in both directions up to where the answer begins, which mmfast does not "
            "tell it: answers would see their own later words. Choose another model"
        )

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        return int(model.get("text_config", {}).get("num_image_tokens", side * side))
