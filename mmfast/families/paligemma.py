"""PaliGemma, which is refused by name."""

from __future__ import annotations

from transformers import PretrainedConfig

from mmfast.families.generic import Generic


class PaliGemma(Generic):
    def __init__(self, config: PretrainedConfig):  # its token types tell prompt from answer, not images from text
        raise ValueError(
            "paligemma: its prompt is read in both directions up to where the answer begins, which mmfast does not "
            "tell it: answers would see their own later words. Choose another model"
        )
