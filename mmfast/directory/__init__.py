"""Where a model lies: a folder as it is, or the snapshot of a hub id in the hub's own cache.

Callers say whether they need the weights. Weights are read from safetensors only: no file of a model is unpickled. The
one exception is a folder in LLaVA's native layout (llava.py), whose weights are .bin files more often than not: they
are read as tensors and nothing else (torch's weights_only). What `directory` returns of it is a folder of descriptions
as transformers would have them, with a note where the weights lie (native.py reads them).
"""

from __future__ import annotations

from pathlib import Path

from mmfast.directory import llava
from mmfast.directory.hub import WEIGHTS, found, published, weight_files, with_weights
from mmfast.directory.native import note_of

__all__ = ["adapter_directory", "directory", "published", "weight_files"]


def directory(model: str | Path, weights: bool = False, *, commit: str = "", cached: bool = False) -> Path:
    """The folder of a model. A hub id is fetched where it is not in the hub's cache (`cached`: it is)."""
    folder = found(model, commit=commit, cached=cached)
    if llava.is_native(folder):
        if weights:
            folder = with_weights(folder, str(model), commit=commit, cached=cached)
        return llava.view(str(model), folder, weights, directory)
    if weights:
        folder = found(model, WEIGHTS, commit=commit, cached=cached)
        if note_of(folder) is None:
            _check_weights(str(model), folder)
    return folder


def adapter_directory(adapter: str | Path, weights: bool = False, *, commit: str = "", cached: bool = False) -> Path:
    """The folder of an adapter in peft's layout; of one in LLaVA's layout, a folder that says the same in peft's."""
    folder = found(adapter, commit=commit, cached=cached)
    if llava.is_adapter(folder):
        return llava.peft_view(str(adapter), with_weights(folder, str(adapter), commit=commit, cached=cached))
    if weights:
        folder = found(adapter, WEIGHTS, commit=commit, cached=cached)
        _check_weights(str(adapter), folder)
    return folder


def _check_weights(name: str, folder: Path) -> None:
    files = weight_files(folder)
    if missing := [file.name for file in files if not file.exists() and file.name != "model.safetensors"]:
        raise ValueError(f"{name} is not whole: {missing[0]}, which its model.safetensors.index.json names, is missing")
    if not (files[0].exists() or (folder / "adapter_model.safetensors").exists()):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        pickle = f", and {pickles[0]} is a pickle, which can run code when it is read" if pickles else ""
        raise ValueError(
            f"{name} holds no safetensors file: weights are read from safetensors only{pickle} "
            f"({'`mmfast import` and ' if pickles else ''}save_pretrained of transformers and peft write safetensors)"
        )
