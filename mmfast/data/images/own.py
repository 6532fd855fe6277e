"""Images of a model that no family's file describes: transformers' own processor, in its Pillow form.

It is asked what it makes of a blank image of each size: how many slots, and what it writes around and among them.
Slower than processor.py by the work that it does for nothing, and exact by construction. Its video half is left out,
which would need torchvision.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL
import torch
import transformers
from torch import Tensor

from mmfast.data.images.decode import decode
from mmfast.data.problems import BadRow
from mmfast.families.base import image_token_id

TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
PROBES = ((600, 300), (300, 600), (56, 56))  # width and height: with tiles beside and above each other, with none


class PixtralRule:
    """Pixtral's processor, as far as one image goes. transformers' class of that name asks for torchvision."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, patch_size: int = 16, spatial_merge_size: int = 1, **named: Any
    ):
        self.image_processor, self.tokenizer, self.patch = image_processor, tokenizer, patch_size * spatial_merge_size
        own = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
        self.image_token, *self.ends = [named.get(name) or token for name, token in own.items()]

    def __call__(self, images: list[list[PIL.Image.Image]], text: list[str], **named: Any) -> dict[str, Tensor]:
        """A line of slots for each line of merged patches, a break behind each, the end behind the last."""
        inputs = self.image_processor(images, patch_size=self.patch, return_tensors="pt")
        (height, width), (line_break, end) = inputs["image_sizes"][0].tolist(), self.ends
        line = self.image_token * (width // self.patch)
        block = line_break.join([line] * (height // self.patch)) + end
        return {**self.tokenizer([text[0].replace(self.image_token, block)], **named), **inputs}


RULES = {"PixtralProcessor": PixtralRule}


class OwnProcessor:
    def __init__(self, folder: Path):
        model = json.loads((folder / "config.json").read_text())
        number = image_token_id(model)
        self.folder, self.name, self.image_id = folder, model.get("model_type", ""), -1 if number is None else number
        self._block = lru_cache(maxsize=1 << 16)(self._read_block)

    @cached_property
    def processor(self) -> Any:
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES as NAMES

        file = self.folder / "processor_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        try:
            name = settings.pop("processor_class", "") or NAMES[self.name]
            parts = {
                "tokenizer": transformers.AutoTokenizer.from_pretrained(self.folder),
                "image_processor": transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil"),
            }
            settings = {key: value for key, value in settings.items() if key not in parts}
            if name in RULES:
                return RULES[name](**parts, **settings)
            kind: Any = getattr(transformers, name)
            halves = kind.get_attributes()
            unchecked: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})
            settings = {key: value for key, value in settings.items() if key not in halves}
            return unchecked.from_args_and_dict([parts.get(half) for half in halves], settings)
        except (ImportError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            cause = str(error).strip().split(". ")[0].split("\n")[0]
            self._refuse(
                "no family's file describes its images, and transformers' own processor of it cannot be made here "
                f"({type(error).__name__}: {cause}). See docs/models.md for such a file"
            )

    @cached_property
    def beside(self) -> tuple[list[int], list[int]]:
        """The ids that stand before and after the slots of any image: the chat's text brings them."""
        written = [self._ids(self._blank(*size)) for size in PROBES]
        firsts = [ids[: ids.index(self.image_id)] for ids in written]
        lasts = [ids[len(ids) - ids[::-1].index(self.image_id) :] for ids in written]
        return _alike(firsts), _alike([ids[::-1] for ids in lasts])[::-1]

    def marks(self) -> tuple[str, str]:
        """(What the chat template writes for an image, what the model reads.)"""
        tokenizer, (before, after) = self.processor.tokenizer, self.beside
        image = tokenizer.convert_ids_to_tokens(self.image_id)
        text = tokenizer.decode(before) + image + tokenizer.decode(after)
        if tokenizer(text, add_special_tokens=False).input_ids != [*before, self.image_id, *after]:
            self._refuse(f"what its processor writes around an image is no text: {text!r}")
        own = tokenizer(f"a{text}b", add_special_tokens=False).input_ids
        at = own.index(self.image_id)
        own[at : at + 1] = self._block(*PROBES[0])[0]
        if own != self._ids(self._blank(*PROBES[0], f"a{self.mark}b")):
            self._refuse("its processor changes the words beside an image")
        return self.mark, text

    @property
    def mark(self) -> str:
        """What the chat template writes for an image."""
        named: str | None = getattr(self.processor, "image_token", None)
        return named or self.processor.tokenizer.decode([self.image_id])

    def geometry(self, width: int, height: int) -> tuple[int, tuple[int, int, int] | None]:
        """As ImageProcessor.geometry; words among the slots are counted too."""
        block, grid = self._block(width, height)
        return len(block), grid

    def words(self, width: int, height: int) -> tuple[tuple[int, int], ...]:
        """As ImageInfo.words."""
        return tuple((place, word) for place, word in enumerate(self._block(width, height)[0]) if word != self.image_id)

    def _read_block(self, width: int, height: int) -> tuple[tuple[int, ...], tuple[int, int, int] | None]:
        """(The ids that stand for an image of this size, its grid.)"""
        before, after = self.beside  # a model that cannot be read is refused here, and below one image of it
        told = f"an image of {width} x {height} is not taken by the model's own processor"
        try:
            inputs = self._blank(width, height)
        except (ValueError, ZeroDivisionError) as error:
            cause = str(error).split("\n")[0]
            raise BadRow("image-shape", f"{told} ({type(error).__name__}: {cause})") from None
        ids = self._ids(inputs)
        block = ids[len(before) : len(ids) - len(after)]
        if [*before, *block, *after] != ids or self.image_id not in block:
            raise BadRow("image-shape", f"{told} as others are: it writes other words beside it")
        grid = inputs.get("image_grid_thw")
        if grid is not None and block.count(self.image_id) < len(block):
            self._refuse(f"its processor writes words among the slots of a grid, an image of {width} x {height}")
        return tuple(block), None if grid is None else tuple(grid[0].tolist())

    def load(self, data: bytes) -> dict[str, np.ndarray]:
        return self.preprocess(decode(data))

    def preprocess(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {name: t.numpy() for name, t in self._run(image).items() if name not in TEXT}

    def collate(self, images: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Several images one after the other, padded with zeros to the largest as the processor itself pads them."""
        return {name: _joined([torch.from_numpy(image[name]) for image in images]) for name in (images or [{}])[0]}

    def digest(self) -> str:
        parts = [transformers.__version__, PIL.__version__, self.processor.image_processor.to_json_string()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _run(self, image: np.ndarray, text: str = "") -> dict[str, Tensor]:
        shown, said = [[PIL.Image.fromarray(image)]], [text or self.mark]
        return dict(self.processor(images=shown, text=said, return_tensors="pt", add_special_tokens=False))

    def _blank(self, width: int, height: int, text: str = "") -> dict[str, Tensor]:
        return self._run(np.zeros((height, width, 3), np.uint8), text)

    def _ids(self, inputs: dict[str, Tensor]) -> list[int]:
        ids: list[int] = inputs["input_ids"][0].tolist()
        if self.image_id not in ids:
            self._refuse(f"its processor writes no token {self.image_id}, the model's image token, for an image")
        return ids

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"model_type {self.name!r}: {why}")


def _alike(lists: list[list[int]]) -> list[int]:
    """What all of them begin with."""
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*lists, strict=False))]


def _joined(parts: list[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    out = parts[0].new_zeros(sum(map(len, parts)), *largest)
    row = 0
    for part in parts:
        place = (slice(row, row + len(part)), *map(slice, part.shape[1:]))
        out[place] = part
        row += len(part)
    return out
