"""Qwen3-VL: learned positions resampled to each grid, and deepstack: states of some tower blocks, each through its own
merger, are added to the image slots after the first decoder layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.qwen2_vl import CHATML, SYSTEM, Qwen2VL
from mmfast.families.tiny import Chat, Size, Tiny

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


class Qwen3VL(Qwen2VL):
    keywords = ("position_ids", "cu_seqlens", "interp_indices", "interp_weights")
    chat: Chat | None = replace(CHATML, template=CHATML.template.replace(SYSTEM, ""))
    published = {  # noqa: RUF012
        "Qwen/Qwen3-VL-8B-Instruct": {
            "text_config": {
                "vocab_size": 151936,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
            },
            "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096},
        }
    }

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        indexes = config.vision_config.deepstack_visual_indexes
        assert list(indexes) == sorted(indexes), indexes  # level i is merger i
        self.levels = len(indexes)

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        tiny = super().tiny(replace(size, patch=16), tokenizer)
        text = tiny.config["text_config"]
        text["head_dim"] = size.hidden // size.heads
        text["rope_parameters"]["mrope_interleaved"] = True
        return tiny

    @classmethod
    def tiny_tower(cls, size: Size) -> dict[str, Any]:
        return {
            "hidden_size": size.vision_hidden,
            "out_hidden_size": size.hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        return [model.model.visual.merger, *model.model.visual.deepstack_merger_list]

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" not in images or "cu_seqlens" in images:
            return images
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights

        indices, weights = get_vision_interpolation_indices_and_weights(
            images["image_grid_thw"],
            num_grid_per_side=int(self.config.vision_config.num_position_embeddings**0.5),
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=self.merge_size,
        )
        return {**super().prepare(images), "interp_indices": indices, "interp_weights": weights}

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        outputs = self.run_tower(model, images)
        return torch.cat([outputs.pooler_output, *outputs.deepstack_features], dim=1)

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """[F, (1+L)*merge*merge*V]: what goes into the merger, then into each deepstack merger."""
        visual = model.model.visual
        seen: dict[int, Tensor] = {}
        hooks = [
            merger.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]}))
            for i, merger in enumerate([visual.merger, *visual.deepstack_merger_list])
        ]
        try:
            self.run_tower(model, images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([seen[i].unflatten(0, (-1, self.merge_size**2)).flatten(1) for i in sorted(seen)], dim=1)

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        mergers = [model.model.visual.merger, *model.model.visual.deepstack_merger_list]
        parts = rows.chunk(len(mergers), dim=1)
        states = [part.unflatten(1, (self.merge_size**2, -1)).flatten(0, 1) for part in parts]
        return torch.cat([merger(state) for merger, state in zip(mergers, states, strict=True)], dim=1)
