"""Image files to RGB bytes and to what a vision tower reads: one path everywhere, Pillow (decoding) and C++ (the rest).

    image_id(data)      sha256 of the file's bytes: equal files are one image
    image_size(data)    (width, height), EXIF orientation applied; decodes the whole file unless told otherwise
    decode(data)        uint8[height, width, 3]

ImageProcessor (processor.py) makes of it what a tower reads. torchvision is never used: its antialiased resize
differs from Pillow's by up to 2/255.
"""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from mmfast.data.problems import BadRow

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; beyond it a file is refused
ORIENTATION = 0x0112
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # PNG and TIFF greys of 16 bits open as these


def image_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _corrupt(reason: object) -> BadRow:
    return BadRow("image-corrupt", f"an image cannot be decoded ({reason})")


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            image = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _corrupt(error) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _corrupt(f"{width} x {height} pixels are above the limit of {MAX_PIXELS}: a decompression bomb?")
    if width == 0 or height == 0:
        raise _corrupt("it has no pixels")
    return image


def _load(image: Image.Image) -> None:
    """Decode the first frame."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise _corrupt(error) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError):
        return 1  # a broken EXIF block turns nothing


def image_size(data: bytes, *, header_only: bool = False) -> tuple[int, int]:
    """Width and height as the processor sees them. A file that does not decode raises BadRow, unless only the header is
    read."""
    image = _open(data)
    if not header_only:
        _load(image)
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as transformers makes it: transparency over white; 16-bit greys scaled to 8 (plain Pillow clips them)."""
    if image.mode in SIXTEEN_BITS:
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((levels.clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise _corrupt("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes) -> np.ndarray:
    """uint8[height, width, 3]: the first frame, upright, in RGB."""
    image = _open(data)
    _load(image)
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    try:
        return np.asarray(to_rgb(image))
    except (OSError, ValueError) as error:
        raise error if isinstance(error, BadRow) else _corrupt(error) from None
