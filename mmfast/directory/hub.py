"""Files of a hub id, in the hub's own cache; and which of a folder's files hold its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")  # configuration, tokenizer, processor, template
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "non_lora_trainables.bin")  # read where nothing else is there
PUBLISHED = ("*.bin", "LICENSE*", "NOTICE*")  # what `mmfast import` makes a model's folder of

_fetched: dict[tuple[str, Sequence[str]], Path] = {}  # what a process reads of a model is one commit, asked for once


def found(model: str | Path, patterns: Sequence[str] = (), *, commit: str = "", cached: bool = False) -> Path:
    """The folder as it lies on the disk, with its description and, of a hub id, the files of these patterns. A hub id
    is fetched where it is not in the hub's cache (`cached`: it is)."""
    name = str(model)
    if Path(model).is_dir():
        return Path(model)
    if (name, patterns) not in _fetched:
        known = next((folder for (other, _), folder in _fetched.items() if other == name), None)
        if known is not None and not patterns:
            return known
        _fetched[name, patterns] = _snapshot(name, patterns, commit or (known.name if known else ""), cached)
    return _fetched[name, patterns]


def with_weights(folder: Path, name: str, *, commit: str = "", cached: bool = False) -> Path:
    """The folder with its weight files: safetensors where there are any; only then is anything else fetched."""
    if folder == Path(name):
        return folder
    folder = found(name, WEIGHTS, commit=commit, cached=cached)
    adapter = (folder / "adapter_config.json").is_file()
    return (
        found(name, PICKLES, commit=commit, cached=cached) if adapter or not [*folder.glob("*.safetensors")] else folder
    )


def published(model: str | Path) -> Path:
    """The folder of a model as it was published, pickled weights too: for a reader that unpickles tensors alone."""
    return found(model, (*WEIGHTS, *PUBLISHED))


def _snapshot(name: str, patterns: Sequence[str], commit: str, cached: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    here = f'"{name}" is no folder here, and'
    try:
        return Path(
            snapshot_download(
                name,
                revision=commit or None,
                allow_patterns=[*DESCRIPTION, *patterns],
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


def weight_files(folder: Path) -> list[Path]:
    """The files that from_pretrained reads a model's weights from; not others that lie beside them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole]
    return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def pickle_files(folder: Path) -> list[Path]:
    """The same of weights as older versions of torch wrote them."""
    whole, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if whole.exists() or not index.exists():
        return [whole]
    return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def whole_files(name: str, folder: Path) -> list[Path]:
    """A folder's weight files of either kind, safetensors first. Raises where one is missing."""
    for files in (weight_files(folder), pickle_files(folder)):
        if len(files) > 1 or files[0].exists():
            if missing := next((file.name for file in files if not file.exists()), ""):
                raise ValueError(f"{name} is not whole: {missing}, which its index names, is missing")
            return files
    raise ValueError(f"{name} holds no weights: neither model.safetensors nor pytorch_model.bin, nor shards of them")
