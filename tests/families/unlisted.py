"""Tiny models of families that no file of mmfast/families describes, written as model directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from mmfast.families import model_class
from mmfast.families.tiny import VICUNA, Chat, Size, decoder_part, tower_part
from mmfast.world.models import save, tokenizer_of

SIZE = Size(image_size=56)
PATCHED = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
PINPOINTS = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}


def chat(image: str, *others: str, **named: str) -> Chat:
    named = {"image_token": image, **named}
    template = VICUNA.template.replace("<image>", image)
    return Chat(named=VICUNA.named, others=(*named.values(), *others), image=named, template=template)


def internvl() -> tuple:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    form = chat("<IMG_CONTEXT>", **marks)
    form.image["context_image_token"] = "<IMG_CONTEXT>"
    config = {"vision_config": PATCHED | {"image_size": [56, 56], "patch_size": [14, 14]}, "image_seq_length": 4}
    images = hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    return form, "qwen2", config | {"downsample_ratio": 0.5}, images, {"image_seq_length": 4}


def llava_onevision() -> tuple:
    config = {"vision_config": tower_part(SIZE) | {"model_type": "siglip_vision_model"}, **PINPOINTS}
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, **PINPOINTS)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return chat("<image>", video_token="<video>"), "qwen2", config, images, settings


def idefics3(splits: bool = False) -> tuple:
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    images = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, do_image_splitting=splits
    )
    config = {"vision_config": tower_part(SIZE), "scale_factor": 2}
    return chat("<image>", "<end_of_utterance>", **marks), "llama", config, images, {"image_seq_len": 4}


def mistral3(kind: str = "mistral3") -> tuple:
    tower = PATCHED | {"model_type": "pixtral", "image_size": 112, "patch_size": 14, "head_dim": 16}
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    form = chat("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return form, "mistral", {"vision_config": tower, "vision_feature_layer": -1}, images, {}


def write(folder: Path, kind: str, parts: tuple[Chat, str, dict[str, Any], Any, dict[str, Any]]) -> Path:
    form, decoder, described, images, settings = parts
    tokenizer = tokenizer_of(form)
    config = hf.AutoConfig.for_model(
        kind,
        text_config={"model_type": decoder, **decoder_part(SIZE, tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids(form.image["image_token"]),
        image_token_index=tokenizer.convert_tokens_to_ids(form.image["image_token"]),
        **described,
    )
    torch.manual_seed(0)
    save(folder, model_class(config).from_config(config), tokenizer, images, None)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder
