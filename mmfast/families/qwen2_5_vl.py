"""Qwen2.5-VL: as Qwen2-VL, with window attention in most blocks of the tower, whose rows run in window order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.qwen2_vl import Qwen2VL
from mmfast.families.sizes import Sizes
from mmfast.families.tiny import Size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Qwen25VL(Qwen2VL):
    keywords = ("position_ids", "cu_seqlens", "window_index", "cu_window_seqlens")
    lengths = ("max_seqlen", "max_window_seqlen")
    published = {  # noqa: RUF012
        "Qwen/Qwen2.5-VL-7B-Instruct": Sizes(
            hidden=3584, layers=28, mlp=18944, heads=28, kv_heads=4, head_dim=128, vocab=152064,
            tower=632e6, projector=44.6e6,
        )
    }  # fmt: skip

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
