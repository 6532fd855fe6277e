"""The three native steps of preprocessing uint8[height, width, 3], free of the GIL, and their Pillow twins."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import PIL
from PIL import Image

from mmfast.ops.dispatch import native

FILTERS = (1, 2, 3)  # Pillow's lanczos, bilinear, bicubic
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


def vertical_first(height: int, width: int, to_height: int, to_width: int) -> bool:
    """From 13 on Pillow starts with the rows where the height shrinks by more than twice as much as the width."""
    return PILLOW_13 and height > to_height and height - to_height > 2 * (width - to_width)


def resize(
    image: np.ndarray, height: int, width: int, resample: int = 3, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """The image resized to [height, width] as Pillow does it, to the bit; of that the window (top, left, height,
    width), zero where it sticks out."""
    top, left, out_height, out_width = window or (0, 0, height, width)
    module: Any = native()
    if module is None:
        return _resize_pillow(image, height, width, resample, (top, left, out_height, out_width))
    image = np.ascontiguousarray(image)
    out = np.empty((out_height, out_width, 3), dtype=np.uint8)
    rows, columns = image.shape[:2]
    module.cpu_image_resize(
        image.ctypes.data, rows, columns, height, width, resample, vertical_first(rows, columns, height, width),
        top, left, out_height, out_width, out.ctypes.data,
    )  # fmt: skip
    return out


def _resize_pillow(
    image: np.ndarray, height: int, width: int, resample: int, window: tuple[int, int, int, int]
) -> np.ndarray:
    top, left, out_height, out_width = window
    whole = np.asarray(Image.fromarray(image).resize((width, height), resample))
    out = np.zeros((out_height, out_width, 3), dtype=np.uint8)
    y0, y1, x0, x1 = max(top, 0), min(top + out_height, height), max(left, 0), min(left + out_width, width)
    if y0 < y1 and x0 < x1:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = whole[y0:y1, x0:x1]
    return out


@cache
def table(
    scale: float | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> np.ndarray:  # float32[3, 256]
    """What rescaling and normalising make of every byte, by the arithmetic of transformers' Pillow processors."""
    levels = np.arange(256)
    values = (levels.astype(np.float64) * scale if scale is not None else levels).astype(np.float32)
    out = np.repeat(values[None], 3, axis=0)
    if mean is not None and std is not None:
        out = (out - np.array(mean, dtype=np.float32)[:, None]) / np.array(std, dtype=np.float32)[:, None]
    return np.ascontiguousarray(out)


def planes(image: np.ndarray, values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The image as float32[3, height, width], written to `out` where it is given."""
    height, width = image.shape[:2]
    module: Any = native()
    if module is None or image.strides[1:] != (3, 1):
        return np.stack([values[c][image[..., c]] for c in range(3)], out=out)
    if out is None:
        out = np.empty((3, height, width), dtype=np.float32)
    assert out.flags.c_contiguous
    module.cpu_image_planes(image.ctypes.data, image.strides[0], height, width, values.ctypes.data, out.ctypes.data)
    return out


def patches(image: np.ndarray, values: np.ndarray, patch: int, merge: int, frames: int) -> np.ndarray:
    """The image as float32[patches, 3 * frames * patch * patch] in Qwen's order: merged squares, one after another."""
    height, width = image.shape[:2]
    rows, columns, size = height // patch, width // patch, 3 * frames * patch * patch
    module: Any = native()
    if module is None:
        split = planes(image, values).reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        ordered = split.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        return np.repeat(ordered, frames, axis=5).reshape(rows * columns, size)
    image = np.ascontiguousarray(image)
    out = np.empty((rows * columns, size), dtype=np.float32)
    module.cpu_image_patches(
        image.ctypes.data, height, width, values.ctypes.data, patch, merge, frames, out.ctypes.data
    )  # fmt: skip
    return out
