"""Where a record's images are: paths under a root, bytes in the row, base64, PIL. Bytes are kept in the cache."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmfast.data.binding import KEPT, NO_FILE, Contents, stamp_of
from mmfast.data.images.decode import image_id, image_size
from mmfast.data.images.own import OwnProcessor
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.records import ImageInfo
from mmfast.files import write_bytes


def measured(processor: ImageProcessor | OwnProcessor, name: str, source: str, data: bytes) -> ImageInfo:
    """What planning needs to know of an image; a BadRow names its source."""
    try:
        width, height = image_size(data)
        tokens, grid = processor.geometry(width, height)
        words = processor.words(width, height)
    except BadRow as error:
        raise BadRow(error.kind, f"image {source}: {error}") from None
    return ImageInfo(id=name, source=source, width=width, height=height, tokens=tokens, grid=grid, words=words)


def unwrapped(image: Any) -> Any:
    """What an image is given as: a path, bytes, base64 text or a PIL image; out of datasets' {bytes, path} where it
    lies in one."""
    if isinstance(image, dict) and ("bytes" in image or "path" in image):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        if image.startswith(("http://", "https://")):
            how = "download it and name the file, or put it into the row (data:image/png;base64,...)"
            raise BadRow("image-missing", f"image {image} is an address, which is not fetched: {how}")
        return image.removeprefix("file://")
    return image


def is_path(image: Any) -> bool:
    return isinstance(image, str) and not image.startswith(("data:", "base64:"))


def image_bytes(image: Any, root: Path) -> tuple[bytes, str]:
    """The file's bytes, and its path where it has one ("" for images inside a row)."""
    image = unwrapped(image)
    if isinstance(image, bytes | bytearray):
        return bytes(image), ""
    if is_path(image):
        return _file_bytes(root / image), str(root / image)
    if isinstance(image, str):
        return _base64(image.split(",", 1)[-1] if image.startswith("data:") else image.removeprefix("base64:")), ""
    if image is not None and callable(getattr(type(image), "save", None)):  # PIL
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue(), ""
    raise BadRow("image-missing", f"an image given as {type(image).__name__}: a path, bytes or a PIL image is needed")


def _file_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a folder, or a device that never ends
            raise BadRow("image-missing", f"image {path} cannot be read (it is no file); is data.images right?")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, BadRow):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRow("image-missing", f"image {path} cannot be read ({reason}); is data.images right?") from None


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("image-corrupt", f"an image's base64 cannot be decoded ({error})") from None


def keep_bytes(folder: Path, name: str, data: bytes) -> Path:
    """Write content-addressed bytes once; safe with several writers."""
    path = folder / name[:2] / name
    if not (path.exists() and path.read_bytes() == data):  # a damaged copy is written again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return path


class ImageIndex:
    """Looks images up, each distinct file once: bytes -> id, size, slots. One for each worker.

    `infos` are images known by content, `seen` files whose content was compared just now: neither is opened again.
    """

    def __init__(
        self,
        processor: Callable[[], ImageProcessor | OwnProcessor] | None,
        keep: Path,
        infos: Mapping[str, ImageInfo] | None = None,
        seen: Contents | None = None,
    ):
        self._make, self.keep = processor, keep
        self._processor: ImageProcessor | OwnProcessor | None = None
        self.infos: dict[str, ImageInfo] = dict(infos or {})
        self.bad: dict[str, BadRow] = {}
        self.contents: Contents = {}  # of every file that was asked for; what the examples depend on
        self.used: set[tuple[int, str]] = set()  # of these, since `start`
        self._missing: dict[tuple[int, str], BadRow] = {}
        self._seen = seen or {}

    def start(self) -> None:
        self.used.clear()

    def look_up(self, image: Any, root: Path, number: int = 0) -> ImageInfo:
        """What is known of an image under `root`, the data's root of that `number`."""
        if self._make is None:
            raise BadRow("image-count", "the row has an image, but the model reads none")
        image = unwrapped(image)
        if is_path(image):
            name = self._of_file(image, root, number)
        else:
            data, _ = image_bytes(image, root)
            name = image_id(data)
            self._measure(name, data, "in the row")
            if name in self.infos:
                self._kept(name, data)
        if name in self.bad:
            raise self.bad[name]
        return self.infos[name]

    def _of_file(self, image: str, root: Path, number: int) -> str:
        place = (number, image)
        self.used.add(place)
        if place in self._missing:
            raise self._missing[place]
        if place not in self.contents:
            before = self._seen.get(place)
            if before and before[0] in self.infos:
                self.contents[place] = before
                return before[0]
            stamp = stamp_of(str(root / image))
            try:
                data, source = image_bytes(image, root)
            except BadRow as error:
                self.contents[place], self._missing[place] = ("", NO_FILE), error
                raise
            name = image_id(data)
            self.contents[place] = name, stamp
            self._measure(name, data, source)
        return self.contents[place][0]

    def _kept(self, name: str, data: bytes) -> None:
        place = (KEPT, f"{name[:2]}/{name}")
        self.used.add(place)
        if place not in self.contents:
            self.contents[place] = name, stamp_of(str(keep_bytes(self.keep, name, data)))

    def _measure(self, name: str, data: bytes, source: str) -> None:
        if name in self.infos or name in self.bad:
            return
        if self._processor is None:
            assert self._make is not None
            self._processor = self._make()
        try:
            self.infos[name] = measured(self._processor, name, source, data)
        except BadRow as error:
            self.bad[name] = error
