"""Detectors as transformers has them: weights, tokenizer and an image processor that needs no torchvision."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmfast.data.images.decode import decode
from mmfast.data.problems import BadRow
from mmfast.engines.base import Picture
from mmfast.models.float32 import keep_float32
from mmfast.packages import no_bars

PROCESSORS = {
    "owlvit": "OwlViTImageProcessorPil",
    "owlv2": "Owlv2ImageProcessorPil",
    "grounding-dino": "GroundingDinoImageProcessorPil",
    "mm-grounding-dino": "GroundingDinoImageProcessorPil",
}


def opened(folder: Path, types: tuple[str, ...], dtype: str, device: str | torch.device) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor) of a detector of one of these types."""
    import transformers as hf

    config = hf.AutoConfig.from_pretrained(folder)
    if config.model_type not in types:
        raise ValueError(f"{folder} is a {config.model_type}: this expert takes {' and '.join(types)}")
    if config.model_type == "owlv2" and not has_scipy():
        raise ValueError("transformers prepares OWLv2's images with scipy: pip install scipy, or take OWL-ViT")
    keep_float32(dtype_of(dtype))
    with no_bars():
        model = hf.AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, dtype=dtype_of(dtype), use_safetensors=True
        )
    images = getattr(hf, PROCESSORS[config.model_type]).from_pretrained(folder)
    return model.to(device).eval(), hf.AutoTokenizer.from_pretrained(folder), images


def dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype = "{name}": choose float32, bfloat16 or float16')
    return found


def has_scipy() -> bool:
    return importlib.util.find_spec("scipy") is not None


def picture_of(picture: Picture) -> Image.Image:
    """Upright and in RGB, as every model here sees it."""
    try:
        return Image.fromarray(decode(picture.data))
    except BadRow as error:
        raise ValueError(f"{picture.source}: {error}") from None


def pixels_of(images: Any, image: Image.Image, model: Any) -> Tensor:
    pixels = images(images=image, return_tensors="pt")["pixel_values"]
    return pixels.to(model.device, model.dtype)
