"""Qwen2.5-VL: as Qwen2-VL, with window attention in most blocks of the tower, whose rows run in window order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.qwen2_vl import Qwen2VL
from mmfast.families.tiny import Size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Qwen25VL(Qwen2VL):
    keywords = ("position_ids", "cu_seqlens", "window_index", "cu_window_seqlens")
    lengths = ("max_seqlen", "max_window_seqlen")
    published = {  # noqa: RUF012
        "Qwen/Qwen2.5-VL-7B-Instruct": {
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        }
    }

    @classmethod
    def tiny_tower(cls, size: Size) -> dict[str, Any]:
        return {
            "hidden_size": size.vision_hidden,
            "out_hidden_size": size.hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "window_size": 4 * size.patch,
            "fullatt_block_indexes": [1],
        }

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" not in images or "cu_seqlens" in images:
            return images
        from transformers.vision_utils import get_vision_window_index

        vision = self.config.vision_config
        index, cu_window_seqlens = get_vision_window_index(
            images["image_grid_thw"], self.merge_size, vision.window_size, vision.patch_size
        )
        return {
            **super().prepare(images),
            "window_index": index,
            "cu_window_seqlens": cu_window_seqlens,
            "max_window_seqlen": torch.empty(int(cu_window_seqlens.diff().max()), 0),
        }

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        return super().tower(model, images)[images["window_index"].argsort()]
