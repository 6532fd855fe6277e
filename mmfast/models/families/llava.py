"""LLaVA-1.5: a CLIP tower at a fixed size, a two-layer projector, a plain decoder with 1-D positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmfast.models.families.base import Adapter, select_hidden


class Llava(Adapter):
    tower_depth = ("vision_config", "num_hidden_layers")

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(model.model.vision_tower.encoder.layers)

    def patches(self) -> int:
        vision = self.config.vision_config
        classes = 0 if self.config.vision_feature_select_strategy == "default" else 1
        return (vision.image_size // vision.patch_size) ** 2 + classes

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [self.patches()] * len(images["pixel_values"])

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [1] * len(images["pixel_values"])

    def dummy_images(self) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, self.config.vision_config.num_channels, side, side)}

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """[images, patches, V]"""
        tower = model.model.vision_tower
        weight = tower.embeddings.patch_embedding.weight
        outputs = tower(images["pixel_values"].to(weight.dtype), output_hidden_states=True)
        return select_hidden(outputs, self.config.vision_feature_layer, self.config.vision_feature_select_strategy)

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        return model.model.multi_modal_projector(rows).flatten(0, -2)
