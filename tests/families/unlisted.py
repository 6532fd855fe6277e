"""Tiny models of families that no file of mmfast/families describes, or draws, written as model directories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from mmfast.families import model_class
from mmfast.families.qwen3_vl import Qwen3VL
from mmfast.families.tiny import VICUNA, Chat, Size, decoder_part, tower_part
from mmfast.world.models import save, tokenizer_of

SIZE = Size(image_size=56)
PATCHED = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
PINPOINTS = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
SIGLIP = tower_part(SIZE) | {"model_type": "siglip_vision_model"}
SQUARE = {"height": 56, "width": 56}
LINEAR = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
TILES = {"size": SQUARE, "crop_to_patches": True, "max_patches": 4}


def chat(image: str, *others: str, **named: str) -> Chat:
    named = {"image_token": image, **named}
    template = VICUNA.template.replace("<image>", image)
    return Chat(named=VICUNA.named, others=(*named.values(), *others), image=named, template=template)


def internvl() -> tuple:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    form = chat("<IMG_CONTEXT>", **marks)
    form.image["context_image_token"] = "<IMG_CONTEXT>"
    config = {"vision_config": PATCHED | {"image_size": [56, 56], "patch_size": [14, 14]}, "image_seq_length": 4}
    images = hf.GotOcr2ImageProcessorPil(**TILES)
    return form, "qwen2", config | {"downsample_ratio": 0.5}, images, {"image_seq_length": 4}


def llava_onevision() -> tuple:
    images = hf.LlavaOnevisionImageProcessorPil(size=SQUARE, **PINPOINTS)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return chat("<image>", video_token="<video>"), "qwen2", {"vision_config": SIGLIP, **PINPOINTS}, images, settings


def vipllava() -> tuple:
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)
    config = {"vision_config": tower_part(SIZE) | {"model_type": "clip_vision_model"}}
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return chat("<image>"), "llama", config | {"vision_feature_layers": [-1, -2, 1]}, images, settings


def idefics3(splits: bool = True, kind: str = "Idefics3") -> tuple:
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    images = getattr(hf, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, do_image_splitting=splits
    )
    config = {"vision_config": tower_part(SIZE), "scale_factor": 2}
    return chat("<image>", "<end_of_utterance>", **marks), "llama", config, images, {"image_seq_len": 4}


def smolvlm() -> tuple:
    return idefics3(kind="SmolVLM")


def idefics2() -> tuple:
    form = chat("<image>", "<end_of_utterance>", image_boundary_token="<fake_token_around_image>")
    images = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False)
    heads = {"resampler_n_heads": 2, "resampler_head_dim": 16, "num_key_value_heads": 2}
    perceiver = {"hidden_size": SIZE.hidden, "resampler_n_latents": 4, **heads}
    config = {"vision_config": tower_part(SIZE), "perceiver_config": perceiver}
    return form, "mistral", config, images, {"image_seq_len": 4}


def glm4v() -> tuple:
    tower = {"depth": 2, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
    images = hf.Glm4vImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 112**2}, patch_size=14)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    config = {"vision_config": tower | {"image_size": 56, "patch_size": 14}}
    marks = {"image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>"}
    form = chat("<|image|>", video_token="<|video|>", **marks)
    template = form.template.replace("<|image|>", "<|begin_of_image|><|image|><|end_of_image|>")
    return replace(form, template=template), "glm4v_text", config, images, {}, {"rope_parameters": rope}


def glm46v() -> tuple:
    form, decoder, config, images, *others = glm4v()
    sizes = {name: getattr(images.size, name) for name in ("shortest_edge", "longest_edge")}
    return form, decoder, config, hf.Glm46VImageProcessorPil(size=sizes, patch_size=14), *others


def gemma4(bidirectional: bool = False) -> tuple:
    marks = {f"{mark}_token": f"<|{mark}|>" for mark in ("boi", "eoi", "audio", "boa", "eoa", "video")}
    tower = PATCHED | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 16}
    heads = {"head_dim": 16, "global_head_dim": 16, "sliding_window": 16, "hidden_size_per_layer_input": 0}
    seen = {"use_bidirectional_attention": "vision"} if bidirectional else {}
    images = hf.Gemma4ImageProcessorPil(max_soft_tokens=70)
    form = chat("<|image|>", **marks)
    ids = {f"{what}_token_id": tokenizer_of(form).convert_tokens_to_ids(f"<|{what}|>") for what in ("audio", "video")}
    return form, "gemma4_text", {"vision_config": tower, "audio_config": None, **ids}, images, {}, heads | seen


def aya_vision() -> tuple:
    form = chat("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE")
    form = replace(form, template=form.template.replace("<|IMG_PATCH|>", "<image>"))
    settings = {"patch_size": 14, "img_size": 56, "downsample_factor": 2}
    config = {"vision_config": SIGLIP, "downsample_factor": 2, "vision_feature_layer": -1}
    return form, "cohere2", config, hf.GotOcr2ImageProcessorPil(**TILES), settings


def pixtral(merge: int = 1) -> tuple:
    tower = PATCHED | {"model_type": "pixtral", "image_size": 112, "patch_size": 14, "head_dim": 16}
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    form = chat("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = {"vision_config": tower, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    settings = {"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": merge}
    return form, "mistral", config, images, settings


def mistral3() -> tuple:
    form, decoder, config, *others = pixtral(merge=2)
    del config["vision_feature_select_strategy"]
    return form, decoder, config | {"spatial_merge_size": 2}, *others


def qwen3_vl_moe() -> tuple:
    form = Qwen3VL.chat
    tiny = Qwen3VL.tiny(SIZE, tokenizer_of(form))
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    images = getattr(hf, tiny.images[0])(**tiny.images[1])
    form = replace(form, image={"image_token": "<|image_pad|>"})
    return form, "qwen3_vl_moe_text", tiny.config, images, {}, tiny.config.pop("text_config") | experts


def qwen3_5() -> tuple:
    form, _, config, images, settings, text = qwen3_vl_moe()
    sizes = {f"linear_{what}": 2 if "num" in what else 16 for what in LINEAR}
    text = {name: value for name, value in text.items() if "expert" not in name and "moe" not in name} | sizes
    tower = {name: value for name, value in config["vision_config"].items() if name != "deepstack_visual_indexes"}
    text["layer_types"] = ["linear_attention", "full_attention"]
    return form, "qwen3_5_text", config | {"vision_config": tower}, images, settings, text


def write(folder: Path, kind: str, parts: tuple) -> Path:
    """`parts`: the chat, the decoder's model_type, config.json, the image processor, the processor's settings, and more
    settings of the decoder where there are any."""
    form, decoder, described, images, settings, *more = parts
    tokenizer = tokenizer_of(form)
    image = tokenizer.convert_tokens_to_ids(form.image["image_token"])
    text: dict[str, Any] = {"model_type": decoder, **decoder_part(SIZE, tokenizer)}
    named = {"image_token_id": image, "image_token_index": image}
    config = hf.AutoConfig.for_model(kind, **{"text_config": text | (more[0] if more else {}), **named, **described})
    torch.manual_seed(0)
    save(folder, model_class(config).from_config(config), tokenizer, images, None)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder
