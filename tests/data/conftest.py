"""Model directories without weights: tokenizer, processor and configuration are all that data needs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.llama import llama_tokenizer


@pytest.fixture(scope="session")
def llava_dir(tmp_path_factory):
    """LLaVA-1.5's shape of things: a Llama-style byte-fallback BPE, 336-pixel images of 576 slots, HF's template."""
    path = tmp_path_factory.mktemp("llava")
    llama_tokenizer("legacy").save_pretrained(path)
    write_llava_config(path)
    return path


def write_llava_config(path: Path) -> None:
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


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory):
    from mmfast.world.models import SIZES, tiny_image_processor, tiny_tokenizer

    path = tmp_path_factory.mktemp("qwen")
    tokenizer = tiny_tokenizer("qwen2_5_vl")
    tokenizer.save_pretrained(path)
    tiny_image_processor("qwen2_5_vl", SIZES["tiny"]).save_pretrained(path)
    config = {"model_type": "qwen2_5_vl", "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def picture(tmp_path):
    """Writes a picture of noise under a name; its content follows from the seed."""

    def make(name: str, seed: int = 0, size: tuple[int, int] = (80, 60)) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def rows(tmp_path):
    """Writes rows as a JSONL file and gives its path."""

    def write(name: str, content: list) -> Path:
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in content]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
