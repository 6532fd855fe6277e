"""Where a record's images are: paths under a root, bytes in the row, base64, PIL. Bytes are kept in the cache."""

from __future__ import annotations

import base64
import binascii
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmfast.data.image_processors import ImageProcessor
from mmfast.data.images import image_id, image_size
from mmfast.data.problems import BadRow
from mmfast.data.records import ImageInfo


def image_bytes(image: Any, root: Path) -> tuple[bytes, str]:
    """The file's bytes, and its path where it has one ("" for images inside a row)."""
    if isinstance(image, dict) and ("bytes" in image or "path" in image):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes | bytearray):
        return bytes(image), ""
    if isinstance(image, str):
        if image.startswith("data:"):
            return _base64(image.split(",", 1)[-1]), ""
        if image.startswith("base64:"):
            return _base64(image[7:]), ""
        if image.startswith(("http://", "https://")):
            raise BadRow("image-missing", f"image {image} is an address: download it and name the file")
        path = root / image.removeprefix("file://")
        try:
            return path.read_bytes(), str(path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BadRow("image-missing", f"image {path} cannot be read ({reason}); is data.images right?") from None
    if image is not None and callable(getattr(type(image), "save", None)):  # PIL
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue(), ""
    raise BadRow("image-missing", f"an image given as {type(image).__name__}: a path, bytes or a PIL image is needed")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("image-corrupt", f"an image's base64 cannot be decoded ({error})") from None


def keep_bytes(folder: Path, name: str, data: bytes) -> Path:
    """Write content-addressed bytes once; safe with several writers."""
    path = folder / name[:2] / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    return path


class ImageIndex:
    """Looks images up, each distinct file once: bytes -> id, size, slots. One for each worker."""

    def __init__(self, processor: Callable[[], ImageProcessor] | None, keep: Path):
        self._make, self._processor, self.keep = processor, None, keep
        self.infos: dict[str, ImageInfo] = {}
        self.bad: dict[str, BadRow] = {}
        self.stamps: dict[str, tuple[int, int]] = {}  # id -> size and time of its file: a cache notices a change
        self._by_path: dict[str, str] = {}

    def look_up(self, image: Any, root: Path) -> ImageInfo:
        path = str(root / image) if isinstance(image, str) else ""
        if path and path in self._by_path:
            name = self._by_path[path]
        else:
            data, source = image_bytes(image, root)
            name = image_id(data)
            if name not in self.infos and name not in self.bad:
                self._add(name, data, source)
            if source:
                self._by_path[path] = name
        if name in self.bad:
            raise self.bad[name]
        return self.infos[name]

    def _add(self, name: str, data: bytes, source: str) -> None:
        if self._make is None:
            raise BadRow("image-count", "the row has an image, but the model reads none")
        if self._processor is None:
            self._processor = self._make()
        try:
            width, height = image_size(data)
            tokens, grid = self._processor.geometry(width, height)
        except BadRow as error:
            where = source or "in the row"
            self.bad[name] = BadRow(error.kind, f"image {where}: {error}")
            return
        if source:
            status = os.stat(source)
            self.stamps[name] = (status.st_size, status.st_mtime_ns)
        else:
            source = str(keep_bytes(self.keep, name, data))
        self.infos[name] = ImageInfo(id=name, source=source, width=width, height=height, tokens=tokens, grid=grid)
