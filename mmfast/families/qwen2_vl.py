"""Qwen2-VL: a tower at native resolution with rotary positions, a merger inside it, M-RoPE in the decoder.

The tower works out its indices from the grid by reading the device; they are made in the worker instead and handed in
as keywords, which the tower takes. A host integer travels as the length of an empty tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.base import Adapter
from mmfast.families.tiny import Chat, Size, Tiny, decoder_part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
CHATML = Chat(
    named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    template=(
        "{% for m in messages %}" + SYSTEM + "<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
)


class Qwen2VL(Adapter):
    image_aspect = "native"
    positions = "mrope"
    tower_depth = ("vision_config", "depth")
    tower_packs = True
    outside_decoder = ("model.visual",)
    keywords: tuple[str, ...] = ("position_ids", "cu_seqlens")
    lengths: tuple[str, ...] = ("max_seqlen",)
    chat: Chat | None = CHATML

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.merge_size = config.vision_config.spatial_merge_size

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        head = size.hidden // size.heads
        part = head // 2 * 3 // 8
        rope = {"rope_type": "default", "mrope_section": [head // 2 - 2 * part, part, part], "rope_theta": 10000.0}
        marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        config = {
            "text_config": decoder_part(size, tokenizer) | {"rope_parameters": rope},
            "vision_config": {
                "depth": size.vision_layers,
                "num_heads": size.vision_heads,
                "initializer_range": size.init,
                "patch_size": size.patch,
                **cls.tiny_tower(size),
            },
            "tie_word_embeddings": size.tie,
            **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()},
        }
        low, high = (2 * size.patch) ** 2, (16 * size.patch) ** 2
        patches = {"patch_size": size.patch, "merge_size": 2, "temporal_patch_size": 2}
        bounds = {"min_pixels": low, "max_pixels": high}
        return Tiny(config=config, images=("Qwen2VLImageProcessorPil", patches | bounds))

    @classmethod
    def tiny_tower(cls, size: Size) -> dict[str, Any]:
        return {"embed_dim": size.vision_hidden, "hidden_size": size.hidden, "mlp_ratio": 2}

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        return [model.model.visual]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(model.model.visual.blocks)

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        return [model.model.visual.merger]

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" not in images or "cu_seqlens" in images:
            return images
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        grid = images["image_grid_thw"]
        cu_seqlens = get_vision_cu_seqlens(grid)
        return {
            **images,
            "position_ids": get_vision_position_ids(grid, self.merge_size),
            "cu_seqlens": cu_seqlens,
            "max_seqlen": torch.empty(int(cu_seqlens.diff().max()), 0),
        }

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return (images["image_grid_thw"].prod(-1) // self.merge_size**2).tolist()

    tower_rows_of = rows_of

    def dummy_images(self) -> dict[str, Tensor]:
        vision = self.config.vision_config
        grid = torch.tensor([[1, self.merge_size, self.merge_size]])
        channels = vision.to_dict().get("in_channels", 3)
        width = channels * vision.temporal_patch_size * vision.patch_size**2
        return self.prepare({"pixel_values": torch.zeros(self.merge_size**2, width), "image_grid_thw": grid})

    def run_tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Any:
        visual = model.model.visual
        ready: dict[str, Any] = {name: images[name] for name in self.keywords}
        ready.update({name: images[name].shape[0] for name in self.lengths})
        pixels = images["pixel_values"].to(visual.patch_embed.proj.weight.dtype)
        return visual(pixels, grid_thw=images["image_grid_thw"], **ready)

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """[F, merge*merge*V]: the rows of one slot side by side. (The merger runs too, for nothing: once an image.)"""
        return self.run_tower(model, images).last_hidden_state.unflatten(0, (-1, self.merge_size**2)).flatten(1)

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        return model.model.visual.merger(rows.unflatten(1, (self.merge_size**2, -1)).flatten(0, 1))

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        return self.run_tower(model, images).pooler_output

    def plain_inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        # without the types Qwen2-VL and Qwen2.5-VL silently fall back to 1-D positions
        return {"mm_token_type_ids": self.images_in(tokens)}
