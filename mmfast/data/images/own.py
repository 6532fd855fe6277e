"""Images of a model that no family's file describes: transformers' own processor, in its Pillow form.

It is asked what it makes of a blank image of each size: how many slots, and what it writes around them. Slower than
processor.py by the work that it does for nothing, and exact by construction. Its video half is left out, which would
need torchvision.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL
import torch
import transformers
from torch import Tensor

from mmfast.data.images.decode import decode
from mmfast.families.base import image_token_id

TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
PROBE = (600, 300)  # width and height: where a processor cuts images into tiles, it does so here


class OwnProcessor:
    def __init__(self, folder: Path):
        model = json.loads((folder / "config.json").read_text())
        self.folder, self.name, self.image_id = folder, model.get("model_type", ""), image_token_id(model)
        self.geometry = lru_cache(maxsize=1 << 16)(self._geometry)

    @cached_property
    def processor(self) -> Any:
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES as NAMES

        file = self.folder / "processor_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        try:
            kind: Any = getattr(transformers, settings.get("processor_class") or NAMES[self.name])
            halves = kind.get_attributes()
            parts = {
                "tokenizer": transformers.AutoTokenizer.from_pretrained(self.folder),
                "image_processor": transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil"),
            }
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
        """The ids that stand before and after an image's slots."""
        return self._slots(self._run(np.zeros((PROBE[1], PROBE[0], 3), np.uint8)))[1:]

    def marks(self) -> tuple[str, str]:
        """(What the chat template writes for an image, what the model reads.)"""
        tokenizer, (before, after) = self.processor.tokenizer, self.beside
        image = tokenizer.convert_ids_to_tokens(self.image_id)
        text = tokenizer.decode(before) + image + tokenizer.decode(after)
        if tokenizer(text, add_special_tokens=False).input_ids != [*before, self.image_id, *after]:
            self._refuse(f"what its processor writes around an image is no text: {text!r}")
        return getattr(self.processor, "image_token", image), text

    def _geometry(self, width: int, height: int) -> tuple[int, tuple[int, int, int] | None]:
        """As ImageProcessor.geometry."""
        inputs = self._run(np.zeros((height, width, 3), np.uint8))
        slots, *beside = self._slots(inputs)
        if tuple(beside) != self.beside:
            self._refuse(f"its processor writes other words beside an image of {width} x {height} than beside others")
        grid = inputs.get("image_grid_thw")
        return slots, None if grid is None else tuple(grid[0].tolist())

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

    def _run(self, image: np.ndarray) -> dict[str, Tensor]:
        text = getattr(self.processor, "image_token", None) or self.processor.tokenizer.decode([self.image_id])
        picture = PIL.Image.fromarray(image)
        return dict(self.processor(images=[[picture]], text=[text], return_tensors="pt", add_special_tokens=False))

    def _slots(self, inputs: dict[str, Tensor]) -> tuple[int, list[int], list[int]]:
        """(Slots of the image, ids before, ids after.)"""
        ids = inputs["input_ids"][0].tolist()
        slots = ids.count(self.image_id)
        first = ids.index(self.image_id) if slots else 0
        if not slots or ids[first : first + slots] != [self.image_id] * slots:
            inner = next((i for i in ids[first:] if i != self.image_id), self.image_id)
            splits = getattr(self.processor.image_processor, "do_image_splitting", False)
            hint = ": set do_image_splitting to false in its preprocessor_config.json" if splits else ""
            self._refuse(
                f"its processor writes {self.processor.tokenizer.decode([inner])!r} between the slots of one image, "
                f"which mmfast keeps in one block{hint}"
            )
        return slots, ids[:first], ids[first + slots :]

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"model_type {self.name!r}: {why}")


def _joined(parts: list[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    out = parts[0].new_zeros(sum(map(len, parts)), *largest)
    row = 0
    for part in parts:
        place = (slice(row, row + len(part)), *map(slice, part.shape[1:]))
        out[place] = part
        row += len(part)
    return out
