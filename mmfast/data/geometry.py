"""A stand-in for mmfast.data.images: what building examples asks of an image, in plain Pillow."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path

from PIL import Image, ImageOps

from mmfast.data.problems import BadRow


def image_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height with the EXIF orientation applied; the whole file is decoded, so a broken one raises."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRow("image-corrupt", f"an image cannot be decoded ({error})") from None


def _smart_resize(height: int, width: int, factor: int, low: int, high: int) -> tuple[int, int]:
    h, w = (max(factor, round(x / factor) * factor) for x in (height, width))
    if h * w > high:
        scale = math.sqrt(height * width / high)
        h, w = (max(factor, math.floor(x / scale / factor) * factor) for x in (height, width))
    elif h * w < low:
        scale = math.sqrt(low / (height * width))
        h, w = (math.ceil(x * scale / factor) * factor for x in (height, width))
    return h, w


class ImageProcessor:
    def __init__(self, config: dict, model: dict, aspect: str, min_pixels: int, max_pixels: int):
        self.config, self.model, self.aspect = config, model, aspect
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        if "patch_size" not in config and model["model_type"] != "llava":
            raise ValueError(f"images: no geometry for {model['model_type']}")

    @staticmethod
    def from_model_dir(path: str | Path, aspect: str = "auto", min_pixels: int = 0, max_pixels: int = 0):
        config = {}
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (Path(path) / name).exists():
                config = json.loads((Path(path) / name).read_text())
                config = config.get("image_processor", config)
                break
        model = json.loads((Path(path) / "config.json").read_text())
        return ImageProcessor(config, model, aspect, min_pixels, max_pixels)

    def geometry(self, width: int, height: int) -> tuple[int, tuple[int, int, int] | None]:
        if self.model["model_type"] == "llava":
            vision = self.model["vision_config"]
            return (vision["image_size"] // vision["patch_size"]) ** 2, None
        patch, merge = self.config["patch_size"], self.config["merge_size"]
        size = self.config.get("size", {})
        low = self.min_pixels or self.config.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        high = self.max_pixels or self.config.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        h, w = _smart_resize(height, width, patch * merge, low, high)
        return (h // patch) * (w // patch) // merge**2, (1, h // patch, w // patch)

    def digest(self) -> str:
        parts = [self.config, self.aspect, self.min_pixels, self.max_pixels]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
