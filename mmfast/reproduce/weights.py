"""Whether a model's folder is whole, and is the model that the paper names: by the files' own headers, which takes no
memory and seconds of a 13B model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mmfast.directory.hub import whole_files
from mmfast.models.importing import read
from mmfast.reproduce.paper import Weights

EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte)\.weight$")
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
OF_TOWERS = ("vision", "visual", "mm_projector", "multi_modal_projector")


@dataclass(frozen=True)
class Seen:
    """What the headers of a folder's weights say of its language model."""

    hidden: int
    layers: int
    vocab: int
    parameters: int


def look(name: str, folder: Path) -> Seen:
    """Raises where a shard is missing or cut, or no language model is there."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in whole_files(name, folder):
        shapes |= shapes_of(file)
    words = {key: shape for key, shape in shapes.items() if not any(part in key for part in OF_TOWERS)}
    embedding = next((shape for key, shape in words.items() if EMBEDDING.search(key)), None)
    layers = {int(found[1]) for key in words if (found := LAYER.search(key))}
    if embedding is None or not layers:
        raise ValueError(f"{name} holds no language model: its weights have neither an embedding nor layers")
    total = sum(map(math.prod, shapes.values()))
    return Seen(hidden=embedding[1], layers=max(layers) + 1, vocab=embedding[0], parameters=total)


def check(model: Weights, folder: Path) -> Seen | None:
    """Raises where the folder does not hold `model`. None of a tower, of which only wholeness is looked at."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: {model.id} is not there whole")
    if model.layout == "tower":
        for file in whole_files(str(folder), folder):
            shapes_of(file)
        return None
    seen = look(str(folder), folder)
    for what in ("hidden", "layers"):
        if getattr(seen, what) != getattr(model, what):
            raise ValueError(
                f"{folder} is not {model.id}: its weights have {what} {getattr(seen, what)}, and the paper's "
                f"{getattr(model, what)} (model.path=... runs another base, and the table says so)"
            )
    if seen.vocab < model.vocab:
        raise ValueError(f"{folder} is not {model.id}: it has {seen.vocab} words, and the paper's {model.vocab}")
    return seen


def tried(model: Weights, folder: Path) -> tuple[Seen | None, str]:
    """The same, and why the folder does not hold `model`; "" where it does."""
    if not folder.is_dir():
        return None, f"{folder} is missing (licence: {model.licence})"
    try:
        return check(model, folder), ""
    except ValueError as error:
        return None, str(error)


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a file; raises where it is cut short."""
    if file.suffix != ".safetensors":
        return {key: tuple(tensor.shape) for key, tensor in read(file).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            return {key: tuple(held.get_slice(key).get_shape()) for key in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut short ({error}): fetch it again") from None
