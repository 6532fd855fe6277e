"""ImageProcessor: how a model's images become pixels and slots, equal to transformers' Pillow processors to the bit.

    square   squashed to the tower's size (Gemma-3; aspect = "square")
    crop     shortest edge to the tower's size, centre cut out (CLIP's own; loses the rest of the image)
    pad      padded with the mean colour to a square, then resized (LLaVA-1.5's training)
    anyres   LLaVA-NeXT: the whole squashed, and tiles of the best-fitting canvas
    native   Qwen2-VL and on: both edges to multiples of a merged patch, between min_pixels and max_pixels

aspect = "auto" is what the model's own processor does.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfast.data.images.decode import decode
from mmfast.data.images.native import FILTERS, PILLOW_13, patches, planes, resize, table
from mmfast.data.images.own import OwnProcessor
from mmfast.data.problems import BadRow
from mmfast.families import family_for

ASPECTS = ("auto", "square", "crop", "pad", "anyres", "native")
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    aspect: str  # resolved: never "auto"
    edge: int  # of the square the tower reads; 0 for native
    resample: int
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    slots: int = 0  # of one square
    patch: int = 0
    merge: int = 1
    frames: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    canvases: tuple[tuple[int, int], ...] = ()  # (height, width)
    tower_tokens: int = 0  # anyres: slots a tile has beyond its patches

    @staticmethod
    def from_model_dir(
        path: str | Path, aspect: str = "auto", min_pixels: int = 0, max_pixels: int = 0
    ) -> ImageProcessor | OwnProcessor:
        """The processor that config.json and preprocessor_config.json of a model folder describe."""
        folder = Path(path)
        model = json.loads((folder / "config.json").read_text())
        family = family_for(model)
        if family is None or not family.image_aspect:
            if aspect != "auto" or min_pixels or max_pixels:
                raise ValueError(
                    f"data.aspect, model.min_pixels and model.max_pixels have no effect on model_type "
                    f"{model.get('model_type')!r}: its images are read by transformers' own processor; leave them out"
                )
            return OwnProcessor(folder)
        settings = _processor_config(folder, family.needs_processor_file)
        return from_config(model, settings, aspect, min_pixels, max_pixels)

    def geometry(self, width: int, height: int) -> tuple[int, tuple[int, int, int] | None]:
        """(slots in the sequence, grid (t, h, w) in patches or None) of an image of this size."""
        if self.aspect == "native":
            h, w = smart_resize(height, width, self.patch * self.merge, self.min_pixels, self.max_pixels)
            rows, columns = h // self.patch, w // self.patch
            return rows * columns // self.merge**2, (1, rows, columns)
        if self.aspect == "anyres":
            return self._anyres_slots(width, height), None
        return self.slots, None

    def words(self, width: int, height: int) -> tuple[tuple[int, int], ...]:
        """As ImageInfo.words: none."""
        return ()

    def load(self, data: bytes) -> dict[str, np.ndarray]:
        """One image file as the tower reads it."""
        return self.preprocess(decode(data))

    def preprocess(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays that the tower reads of uint8[height, width, 3]."""
        height, width = image.shape[:2]
        values = table(self.scale, self.mean, self.std)
        if self.aspect == "native":
            h, w = smart_resize(height, width, self.patch * self.merge, self.min_pixels, self.max_pixels)
            pixels = patches(resize(image, h, w, self.resample), values, self.patch, self.merge, self.frames)
            grid = np.array([1, h // self.patch, w // self.patch], dtype=np.int64)
            return {"pixel_values": pixels, "image_grid_thw": grid}
        if self.aspect == "anyres":
            tiles = self._tiles(image)
            pixels = np.empty((len(tiles), 3, self.edge, self.edge), dtype=np.float32)
            for tile, out in zip(tiles, pixels, strict=True):
                planes(tile, values, out)
            return {"pixel_values": pixels, "image_sizes": np.array([height, width], dtype=np.int64)}
        if self.aspect == "pad":
            image = pad_to_square(image, tuple(int(x * 255) for x in self.mean or (0.0, 0.0, 0.0)))
        if self.aspect == "crop":
            short, long = sorted((height, width))
            longer = int(self.edge * long / short)
            h, w = (self.edge, longer) if height <= width else (longer, self.edge)
            window = ((h - self.edge) // 2, (w - self.edge) // 2, self.edge, self.edge)
            return {"pixel_values": planes(resize(image, h, w, self.resample, window), values)}
        return {"pixel_values": planes(resize(image, self.edge, self.edge, self.resample), values)}

    def collate(self, images: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Several images as the tower reads them; tiles and patches of all images in one row."""
        if not images:
            return {}
        join = np.concatenate if self.aspect in ("native", "anyres") else np.stack
        out = {"pixel_values": torch.from_numpy(join([x["pixel_values"] for x in images]))}
        for name in ("image_sizes", "image_grid_thw"):
            if name in images[0]:
                out[name] = torch.from_numpy(np.stack([x[name] for x in images]))
        return out

    def digest(self) -> str:
        """A name that changes whenever pixels or slots do."""
        parts = {"version": VERSION, "pillow_13": PILLOW_13, **asdict(self)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _tiles(self, image: np.ndarray) -> list[np.ndarray]:
        height, width = image.shape[:2]
        rows, columns = best_canvas(height, width, self.canvases)
        h, w = fit_in(height, width, rows, columns)
        window = (-((rows - h) // 2), -((columns - w) // 2), rows, columns)
        canvas = resize(image, h, w, self.resample, window)
        tiles = [resize(image, self.edge, self.edge, self.resample)]
        for y in range(0, rows, self.edge):
            tiles += [canvas[y : y + self.edge, x : x + self.edge] for x in range(0, columns, self.edge)]
        return tiles

    def _anyres_slots(self, width: int, height: int) -> int:
        """Patches of the whole, patches of the canvas without its padding, and a newline behind each of its lines."""
        side = self.edge // self.patch
        rows, columns = (x // self.edge * side for x in best_canvas(height, width, self.canvases))
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return side * side + self.tower_tokens + rows * columns + rows


def smart_resize(height: int, width: int, factor: int, low: int, high: int) -> tuple[int, int]:
    """Qwen's rule: multiples of `factor`, between `low` and `high` pixels, the aspect kept as far as that goes."""
    if max(height, width) > 200 * min(height, width):
        raise BadRow("image-shape", f"an image of {width} x {height} is longer than 200 times its width: crop it")
    h, w = (round(x / factor) * factor for x in (height, width))
    if h * w > high:
        shrink = math.sqrt(height * width / high)
        h, w = (max(factor, math.floor(x / shrink / factor) * factor) for x in (height, width))
    elif h * w < low:
        grow = math.sqrt(low / (height * width))
        h, w = (math.ceil(x * grow / factor) * factor for x in (height, width))
    return h, w


def pad_to_square(image: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    height, width = image.shape[:2]
    if height == width:
        return image
    edge = max(height, width)
    out = np.empty((edge, edge, 3), dtype=np.uint8)
    y, x = (edge - height) // 2, (edge - width) // 2
    line = np.tile(np.array(color, dtype=np.uint8), edge)
    flat = out.reshape(edge, 3 * edge)  # whole lines of bytes: filling pixel by pixel takes longer than the resize
    flat[:y], flat[y + height :] = line, line
    flat[y : y + height, : 3 * x], flat[y : y + height, 3 * (x + width) :] = line[: 3 * x], line[3 * (x + width) :]
    out[y : y + height, x : x + width] = image
    return out


def best_canvas(height: int, width: int, canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The canvas that keeps the most pixels of the image, then the one that wastes the fewest of its own."""

    def merit(canvas: tuple[int, int]) -> tuple[int, int]:
        shrink = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * shrink) * int(height * shrink), width * height)
        return kept, -(canvas[0] * canvas[1] - kept)

    return max(canvases, key=merit)  # the first of equals


def fit_in(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """The largest size of this aspect on a canvas; one edge is met exactly, the other rounded up."""
    by_width, by_height = columns / width, rows / height
    if by_width < by_height:
        return min(math.ceil(height * by_width), rows), columns
    return rows, min(math.ceil(width * by_height), columns)


def _processor_config(folder: Path, needed: bool = True) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            if name == "preprocessor_config.json" or "image_processor" in config:
                return config.get("image_processor", config)
    if needed:
        raise ValueError(f"{folder} has no preprocessor_config.json: is it a whole model folder?")
    return {}


def _edge(config: dict[str, Any], default: int) -> int:
    size = config.get("crop_size") or config.get("size") or default
    if isinstance(size, dict):
        height, width = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        if height is None or height != width:
            raise ValueError(f"the image processor's size is no square: {size}")
        return int(height)
    return int(size)


def from_config(
    model: dict[str, Any], config: dict[str, Any], aspect: str, min_pixels: int, max_pixels: int
) -> ImageProcessor:
    """The processor of these settings. What it would not reproduce to the bit is refused."""
    # The aspect: the model's own, or another of a fixed size
    kind, family = model.get("model_type", ""), family_for(model)
    if aspect not in ASPECTS:
        raise ValueError(f"data.aspect must be one of {', '.join(ASPECTS)}, not {aspect!r}")
    assert family is not None and family.image_aspect, kind
    own = family.aspect_of(config)
    resolved = own if aspect == "auto" else aspect
    if resolved != own and (own in ("anyres", "native") or resolved in ("anyres", "native")):
        raise ValueError(f"data.aspect = {aspect!r} does not suit {kind}, whose images are {own!r}")
    if (min_pixels or max_pixels) and own != "native":
        raise ValueError(
            f"model.min_pixels and model.max_pixels have no effect on {kind}: its images have a fixed size"
        )
    # What happens to pixels
    if not config.get("do_resize", True):
        raise ValueError("the image processor has do_resize = false: images of any size would reach the tower")
    if config.get("do_pan_and_scan"):
        raise ValueError("the image processor has do_pan_and_scan = true: extra crops of an image are not supported")
    normalise = config.get("do_normalize", True)
    resample = int(config.get("resample", family.image_resample))
    if resample not in FILTERS:
        raise ValueError(f"the image processor's resample = {resample} is none of Pillow's {FILTERS}")
    common: dict[str, Any] = {
        "aspect": resolved,
        "resample": resample,
        "scale": float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else None,
        "mean": tuple(config.get("image_mean") or family.image_mean) if normalise else None,
        "std": tuple(config.get("image_std") or family.image_std) if normalise else None,
    }
    if own == "native":
        return _native(config, common, min_pixels, max_pixels)
    # A fixed size, or tiles of one
    reads, patch = family.tower_square(model)
    edge = _edge(config, reads or 224)
    if reads and reads != edge:
        raise ValueError(f"the image processor makes {edge} pixels, but the tower reads {reads}")
    side = edge // patch
    slots = family.square_slots(model, side)
    if own != "anyres":
        pooled = slots < side * side  # no slot is a patch then
        return ImageProcessor(**common, edge=edge, patch=0 if pooled else patch, slots=slots)
    size = config.get("size", {})
    if isinstance(size, dict) and size.get("shortest_edge", size.get("height", edge)) != edge:
        raise ValueError(f"the image processor's size {size} and crop_size {edge} differ: tiles would be resized twice")
    pinpoints = config.get("image_grid_pinpoints") or model.get("image_grid_pinpoints")
    if not pinpoints:
        raise ValueError("image_grid_pinpoints is missing from preprocessor_config.json")
    canvases = tuple((int(h), int(w)) for h, w in pinpoints)
    return ImageProcessor(**common, edge=edge, patch=patch, canvases=canvases, tower_tokens=slots - side * side)


def _native(config: dict[str, Any], common: dict[str, Any], min_pixels: int, max_pixels: int) -> ImageProcessor:
    size = config.get("size") or {}
    low = min_pixels or config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56
    high = (
        max_pixels or config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 28 * 28 * 1280
    )
    if low > high:
        raise ValueError(f"min_pixels = {low} is above max_pixels = {high}")
    return ImageProcessor(
        **common, edge=0, patch=int(config.get("patch_size", 14)), merge=int(config.get("merge_size", 2)),
        frames=int(config.get("temporal_patch_size", 2)), min_pixels=int(low), max_pixels=int(high),
    )  # fmt: skip
