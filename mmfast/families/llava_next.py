"""LLaVA-NeXT (anyres): an image's tiles through the tower, unpadded to its shape, a newline row after each line.

Which tower row (or the newline) stands in which slot is worked out on the host, by the model's own function run on row
numbers instead of features; on the device it is one gather.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.llava import Llava
from mmfast.families.tiny import Size, Tiny

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class LlavaNext(Llava):
    image_aspect = "anyres"
    published = {}  # noqa: RUF012

    @classmethod
    def aspect_of(cls, processor: dict[str, Any]) -> str:
        return cls.image_aspect

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        edge = size.image_size // 2  # four tiles and the whole: as many pixels again
        plain = super().tiny(replace(size, image_size=edge), tokenizer)
        assert plain.images and plain.processor
        canvases = {"image_grid_pinpoints": [[edge, 2 * edge], [2 * edge, edge], [2 * edge, 2 * edge]]}
        return Tiny(
            config=plain.config | canvases,
            images=("LlavaNextImageProcessorPil", plain.images[1] | canvases),
            processor=("LlavaNextProcessor", plain.processor[1]),
        )

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        return [model.model.multi_modal_projector, model.model.image_newline]

    def tiles(self, image_sizes: Tensor) -> list[int]:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        side = self.config.vision_config.image_size
        return [
            image_size_to_num_patches(size, self.config.image_grid_pinpoints, side) for size in image_sizes.tolist()
        ]

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        if "image_sizes" not in images or "gather" in images:
            return images
        images = {**images, "gather": torch.cat(self.row_numbers(images["image_sizes"]))}
        pixels = images.get("pixel_values")
        if pixels is not None and pixels.dim() == 5:  # the processor pads every image to the largest number of tiles
            tiles = self.tiles(images["image_sizes"])
            images["pixel_values"] = torch.cat([p[:n] for p, n in zip(pixels, tiles, strict=True)])
        return images

    def row_numbers(self, image_sizes: Tensor) -> list[Tensor]:
        """Of each image, the tower row in each slot; the newline is the row after the last."""
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

        tiles, patches = self.tiles(image_sizes), self.patches()
        numbers = torch.arange(sum(tiles) * patches).view(-1, patches, 1)
        packed, _ = LlavaNextModel.pack_image_features(
            SimpleNamespace(config=self.config),  # type: ignore[arg-type]  # all of the model that it reads
            torch.split(numbers, tiles),
            image_sizes.tolist(),
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=torch.tensor([numbers.numel()]),
        )
        return [rows.flatten() for rows in packed]

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [len(rows) for rows in self.row_numbers(images["image_sizes"])]

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return self.tiles(images["image_sizes"])

    def dummy_images(self) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        images = {"image_sizes": torch.tensor([[side, side]])}
        tiles = self.tiles(images["image_sizes"])[0]
        images["pixel_values"] = torch.zeros(1, tiles, self.config.vision_config.num_channels, side, side)
        return self.prepare(images)

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        features = super().project(model, rows, images)
        newline = model.model.image_newline.to(features.dtype)
        return torch.cat([features, newline[None]]).index_select(0, images["gather"])
