"""LLaVA-1.5: a CLIP tower at a fixed size, a two-layer projector, a plain decoder with 1-D positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmfast.directory.llava import CLIP_336
from mmfast.directory.native import written_name
from mmfast.families.base import Adapter
from mmfast.families.tiny import VICUNA, Size, Tiny, decoder_part, tower_part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VICUNA_7B = {"vocab_size": 32064}  # the rest, and CLIP's tower, are transformers' defaults
VICUNA_13B = VICUNA_7B | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
VICUNA_13B |= {"num_attention_heads": 40, "num_key_value_heads": 40}


CLIP = "clip_vision_model"


class Llava(Adapter):
    image_aspect = "crop"
    tower_depth = ("vision_config", "num_hidden_layers")
    chat = VICUNA
    published = {  # noqa: RUF012
        "llava-hf/llava-1.5-7b-hf": {"text_config": VICUNA_7B},
        "llava-hf/llava-1.5-13b-hf": {"text_config": VICUNA_13B},
    }

    @classmethod
    def describes(cls, model: dict[str, Any]) -> bool:
        return (model.get("vision_config") or {}).get("model_type", CLIP) in (CLIP, "siglip_vision_model")

    @classmethod
    def aspect_of(cls, processor: dict[str, Any]) -> str:
        if processor.get("do_pad"):
            return "pad"
        return "crop" if processor.get("do_center_crop", True) else "square"

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        """The patches, and the class token where it is kept."""
        return side * side + (model.get("vision_feature_select_strategy", "default") != "default")

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        edge = size.image_size
        config = {
            "vision_config": tower_part(size) | {"projection_dim": size.vision_hidden},
            "text_config": decoder_part(size, tokenizer),
            "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
            "image_seq_length": size.side**2,
            "tie_word_embeddings": size.tie,
        }
        square = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        slots = {
            "patch_size": size.patch,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
        return Tiny(config=config, images=("CLIPImageProcessorPil", square), processor=("LlavaProcessor", slots))

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(model.model.vision_tower.encoder.layers)

    def patches(self) -> int:
        vision, strategy = self.config.vision_config, self.config.vision_feature_select_strategy
        side = vision.image_size // vision.patch_size
        return self.square_slots({"vision_feature_select_strategy": strategy}, side)

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

    def original_name(self, name: str) -> str:
        return written_name(name, "llava")

    def original_config(self, aspect: str) -> dict[str, Any]:
        c = self.config
        if c.model_type != "llava":
            return super().original_config(aspect)
        if c.projector_hidden_act != "gelu" or not isinstance(c.vision_feature_layer, int):
            raise ValueError(
                'export.formats: "llava" is the native layout of LLaVA-1.5 with its two-layer gelu projector on one '
                "layer of the tower; this model has others"
            )
        if aspect == "square":
            raise ValueError(
                'export.formats: LLaVA\'s layout has no word for data.aspect = "square"; it pads or cuts images'
            )
        return c.text_config.to_dict() | {
            "model_type": "llava_llama",
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_select_layer": c.vision_feature_layer,
            "mm_vision_select_feature": "patch",
            "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": c.vision_config.hidden_size,
            "mm_vision_tower": CLIP_336,
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad" if aspect == "pad" else "square",  # which is its word for "cut"
        }


def select_hidden(outputs: Any, layer: int | list[int], strategy: str) -> Tensor:
    """LLaVA's choice of tower states: [images, patches, V]."""
    picked = [outputs.hidden_states[i] for i in ([layer] if isinstance(layer, int) else layer)]
    if strategy == "default":
        picked = [states[:, 1:] for states in picked]
    return picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)
