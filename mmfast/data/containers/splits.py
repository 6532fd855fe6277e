"""Which split a file of a folder belongs to. A folder of several is not read whole: tests would leak into training."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}$")  # how data sets on a hub, and `datasets`, name the shards of a split
WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "eval", "evaluation": "eval",
         "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}  # fmt: skip


def split_of(file: Path, folder: Path) -> str:
    """The split that a file's name, or that of a folder on the way to it, tells of; "" if none does."""
    if shard := SHARD.match(file.stem):
        return shard[1]
    names = [*reversed(file.relative_to(folder).parts[:-1]), file.stem]
    words = [WORDS[w] for name in names for w in re.split(r"[^a-z]+", name.lower()) if w in WORDS]
    return words[-1] if words else ""


def one_split(folder: Path, files: Sequence[Path]) -> None:
    """Raises where a folder's files belong to several splits, and says how to name one."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file, folder), []).append(file)
    named = sorted(set(splits) - {""})
    if len(named) > 1:
        example = "train" if "train" in named else named[0]
        raise ValueError(
            f"data.path: the folder {folder} holds several splits ({', '.join(named)}): name the files of one, such as "
            f'"{_naming(splits[example], files)}" (a folder, a file, or a pattern for several)'
        )


def _naming(shards: Sequence[Path], files: Sequence[Path]) -> Path:
    """A path that stands for the wanted ones among a folder's files."""
    if len(shards) == 1:
        return shards[0]
    parent = Path(os.path.commonpath([f.parent for f in shards]))
    if all(f in shards for f in files if parent in f.parents):
        return parent
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*(f.name for f in shards), strict=False))
    return parent / ("".join(column[0] for column in letters) + "*")


def saved_split(folder: Path) -> Path:
    """The folder of the one split that DatasetDict.save_to_disk wrote into `folder`."""
    names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if len(names) != 1:
        example = "train" if "train" in names else sorted(names)[0]
        raise ValueError(
            f"data.path: the folder {folder} holds several splits ({', '.join(sorted(names))}): name "
            f'the folder of one, such as "{folder / example}"'
        )
    return folder / names[0]
