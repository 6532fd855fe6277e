"""The weights of a folder in LLaVA's native layout, under the names that their parameters have in transformers' model.

    tensors = tensors_of(directory(path, weights=True))      # None: the folder has a layout of transformers' own
    tensors["model.language_model.norm.weight"]              # read when it is asked for, LoRA merged

Nothing is copied: .bin files are mapped into memory and read as tensors alone (torch's weights_only runs no code).
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "lm_head.weight"
NOTE = "weights.native"  # beside the descriptions: where the weights lie
TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."

# The start of a stored name -> of the parameter's. LLaVA's own names, and those of the hub's converted models.
NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", TOWER),
    ("model.vision_tower.vision_tower.", TOWER),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.language_model.", "model.language_model."),
    ("model.vision_tower.vision_model.", TOWER),
    (TOWER, TOWER),
    ("model.multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", TOWER),
    ("vision_tower.", TOWER),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
OF_CLIP = (("vision_model.", TOWER),)  # of a tower's own files; its text half is none of ours
# How the two layouts write a parameter's name
WRITTEN = {
    "llava": {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        TOWER: "model.vision_tower.vision_tower.vision_model.",
    },
    "hf": {
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        TOWER: "vision_tower.vision_model.",
        "lm_head.": "language_model.lm_head.",
    },
}
REBUILT = (".position_ids", ".inv_freq")  # buffers that old files hold


def parameter_name(key: str, names: tuple[tuple[str, str], ...] = NAMES) -> str:
    """ "" where no parameter is meant."""
    start, ours = next(((start, ours) for start, ours in names if key.startswith(start)), ("", ""))
    return ours + key.removeprefix(start) if start else ""


def written_name(parameter: str, layout: str) -> str:
    """What the files of a layout ("llava" or "hf") call a parameter."""
    starts = WRITTEN[layout]
    start = next((start for start in starts if parameter.startswith(start)), "")
    return starts.get(start, "") + parameter.removeprefix(start)


def note_of(folder: Path) -> dict[str, Any] | None:
    """Where the weights of a folder lie that describes a native model; None for any other folder."""
    path = folder / NOTE
    return json.loads(path.read_text()) if path.is_file() else None


def origin_of(folder: Path) -> Path:
    """The folder that a user named: of a native one, where its own descriptions lie."""
    note = note_of(folder)
    return Path(note["origin"]) if note else folder


def tensors_of(folder: Path) -> Tensors | None:
    note = note_of(folder)
    return None if note is None else Tensors(note)


def read_file(file: Path) -> Mapping[str, Tensor]:
    """A file's tensors, .safetensors or .bin. ValueError where it is damaged, or holds anything but tensors."""
    import torch
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        try:
            return _Safe(safe_open(file, "pt"))
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or not whole: {error}") from None
    try:
        read = unpickled(file)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} is a pickle that holds more than tensors, and could run code: it is not read"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged or not whole: {str(error).splitlines()[0]}") from None
    if not (isinstance(read, dict) and all(isinstance(value, torch.Tensor) for value in read.values())):
        raise ValueError(f"{file} holds no weights: it is no table of tensors")
    return cast("Mapping[str, Tensor]", read)


def unpickled(file: Path) -> Any:
    """What a pickle holds, tensors alone, in the file's own memory where its format allows that."""
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # a format of before torch 1.6


class _Safe(Mapping[str, "Tensor"]):
    """A safetensors file, tensor by tensor."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getitem__(self, key: str) -> Tensor:
        return self.file.get_tensor(key)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(key).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.keys())

    def __len__(self) -> int:
        return len(self.file.keys())


class Tensors(Mapping[str, "Tensor"]):
    """A model's tensors by the names of its parameters, from the files of a note (of any layout that NAMES knows)."""

    def __init__(self, note: dict[str, Any]) -> None:
        self.name, self.dtype = note["name"], note.get("dtype", "")
        self.places: dict[str, tuple[Mapping[str, Tensor], str]] = {}
        for file in note["files"]:
            self._take(Path(file), NAMES)
        self.own_tower = any(name.startswith(TOWER) for name in self.places)
        self.borrowed: set[str] = set()
        if not self.own_tower:
            before = set(self.places)
            for file in note.get("tower", ()):
                self._take(Path(file), OF_CLIP, others=True)
            self.borrowed = set(self.places) - before
        self.lora: dict[str, tuple[Tensor, Tensor]] = {}
        self.scale = float(note.get("scale", 1.0))
        self.replaced: dict[str, Tensor] = {}
        if note.get("adapter"):
            self.lora, self.replaced = read_adapter(Path(note["adapter"]))
            self._check_adapter(note["adapter"])
            if note.get("bare"):
                self.lora = {}

    def _take(self, file: Path, names: tuple[tuple[str, str], ...], others: bool = False) -> None:
        read = read_file(file)
        for key in read:
            name = parameter_name(key, names)
            if name and not name.endswith(REBUILT):
                self.places[name] = (read, key)
            elif not name and not others:
                raise ValueError(f"{file} holds {key}, which is no tensor of LLaVA-1.5: is it a file of another model?")

    def _check_adapter(self, adapter: str) -> None:
        for name in (*(f"{stem}.weight" for stem in self.lora), *self.replaced):
            if name in self.replaced and name.startswith(PROJECTOR) and name not in self.places:
                self.places[name] = (self.replaced, name)  # on Vicuna itself the projector is the adapter's alone
            if name not in self.places:
                raise ValueError(f"{adapter}: {name} has no place in {self.name}: is it the adapter's base?")
            a, b = self.lora.get(name.removesuffix(".weight"), (None, None))
            shape = self.replaced[name].shape if a is None or b is None else (len(b), a.shape[1])
            if tuple(shape) != self.shape(name):
                raise ValueError(f"{adapter}: {name} has another shape than in {self.name}: is it the adapter's base?")

    def _stored(self, name: str) -> Tensor:
        file, key = self.places[name]
        return file[key]

    def size(self, name: str) -> int:
        """Bytes, where a number takes four at most."""
        return 4 * math.prod(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        file, key = self.places[name]
        return file.shape(key) if isinstance(file, _Safe) else tuple(file[key].shape)

    def __getitem__(self, name: str) -> Tensor:
        import torch

        stored = self._stored(name)
        if name in self.replaced:
            beside = self._stored(HEAD) if self.places[name][0] is self.replaced else stored
            return self.replaced[name].to(beside.dtype)
        if name.removesuffix(".weight") in self.lora:
            a, b = self.lora[name.removesuffix(".weight")]
            return (stored.float() + self.scale * (b.float() @ a.float())).to(stored.dtype)
        if name in self.borrowed and self.dtype:
            return stored.to(getattr(torch, self.dtype))  # as the original loads it
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_adapter(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Of an adapter in LLaVA's layout: (A and B of each adapted layer, tensors that stand in place of the base's), by
    parameter names."""
    # Matrices and whole tensors, by names without what peft and deepspeed put in front
    found: dict[str, Tensor] = {}
    safe, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    for file in (safe if safe.exists() else pickled, folder / "non_lora_trainables.bin"):
        if not file.exists():
            raise ValueError(f"{folder} is not whole: {file.name} is missing")
        for key, tensor in read_file(file).items():
            plain = key.removeprefix("base_model.").removeprefix("model.").replace(".default.", ".")
            name = parameter_name(plain) or parameter_name(f"model.{plain}")
            if not name:
                raise ValueError(f"{file} holds {key}, which is no tensor of LLaVA-1.5: is it a file of another model?")
            found[name] = tensor
    # In pairs
    stems = [name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")]
    if alone := [stem for stem in stems if f"{stem}.lora_B.weight" not in found]:
        raise ValueError(f"{folder}: {alone[0]} has one half of its LoRA matrices only")
    lora = {stem: (found.pop(f"{stem}.lora_A.weight"), found.pop(f"{stem}.lora_B.weight")) for stem in stems}
    if odd := [name for name in found if ".lora_" in name]:
        raise ValueError(f"{folder}: {odd[0]} is no matrix of plain LoRA")
    return lora, found
