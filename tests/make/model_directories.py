"""Model directories without weights: tokenizer, processor and configuration are all that data needs."""

import json
from pathlib import Path

from mmfast.world.models import SIZES, tiny_image_processor, tiny_tokenizer
from tests.make.llama_tokenizer import llama_tokenizer


def write_llava(path: Path) -> None:
    """LLaVA-1.5's shape of things: a Llama-style byte-fallback BPE, 336-pixel images of 576 slots, HF's template."""
    llama_tokenizer("legacy").save_pretrained(path)
    config = {
        "model_type": "llava",
        "image_token_index": 2000,
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        "text_config": {"model_type": "llama", "vocab_size": 2100},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 576,
    }
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    config["image_token_index"] = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<image>")
    (path / "config.json").write_text(json.dumps(config))
    clip = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 336},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 336, "width": 336},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(clip))


def write_qwen(path: Path) -> None:
    tokenizer = tiny_tokenizer("qwen2_5_vl")
    tokenizer.save_pretrained(path)
    tiny_image_processor("qwen2_5_vl", SIZES["tiny"]).save_pretrained(path)
    config = {"model_type": "qwen2_5_vl", "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    (path / "config.json").write_text(json.dumps(config))
