"""Where a model lies: a folder as it is, or the snapshot of a hub id in the hub's own cache.

Callers say whether they need the weights. Weights are read from safetensors only: no file of a model is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path

DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt")  # configuration, tokenizer, processor, template
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
PUBLISHED = ("*.bin", "*.tiktoken", "LICENSE*", "NOTICE*")  # what `mmfast import` makes a model's folder of

_fetched: dict[tuple[str, bool], Path] = {}  # hub ids: what a process reads of a model is one commit, asked for once


def directory(model: str | Path, weights: bool = False, *, commit: str = "", cached: bool = False) -> Path:
    """The folder of a model or adapter. A hub id is fetched where it is not in the hub's cache (`cached`: it is)."""
    name = str(model)
    folder = Path(model) if Path(model).is_dir() else _fetched.get((name, True)) or _fetched.get((name, weights))
    if folder is None:
        known = _fetched.get((name, False))
        folder = _snapshot(name, weights, commit or (known.name if known else ""), cached)
        _fetched[name, weights] = folder
    if weights:
        _check_weights(name, folder)
    return folder


def published(model: str | Path) -> Path:
    """The folder of a model as it was published, pickled weights too: for a reader that unpickles tensors alone."""
    return Path(model) if Path(model).is_dir() else _snapshot(str(model), True, "", False, PUBLISHED)


def _snapshot(name: str, weights: bool, commit: str, cached: bool, more: tuple[str, ...] = ()) -> Path:
    from huggingface_hub import errors, snapshot_download

    here = f'"{name}" is no folder here, and'
    try:
        return Path(
            snapshot_download(
                name,
                revision=commit or None,
                allow_patterns=[*DESCRIPTION, *(WEIGHTS if weights else ()), *more],
                ignore_patterns=["*/*"],  # other formats of the same weights lie in folders of their own
                local_files_only=cached,
            )
        )
    except errors.HFValidationError:
        raise ValueError(f"{here} no hub id either (those are written NAME or OWNER/NAME)") from None
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{here} the hub has no such model, or shows it to its friends only (then log in: hf auth login)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(f"{here} as a hub id it could not be reached") from error
    except Exception as error:  # whatever a download can die of: it is said in a line
        cause = str(error).strip().split("\n")[0]
        raise ValueError(f"{here} as a hub id it could not be fetched: {type(error).__name__}: {cause}") from error


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


def weight_files(folder: Path) -> list[Path]:
    """The files that from_pretrained reads a model's weights from; not others that lie beside them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole]
    return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
